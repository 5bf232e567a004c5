"""Compiled blocks compute what Python's own blocks compute, whatever is swapped and whenever a training goes on."""

import copy
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from tiny import pair
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from walks import compare, walk

from iakd import models
from iakd.config import Schedule
from iakd.models.cifar.resnet import BasicBlock
from iakd.training import checkpoint, compiled
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]
HALF = Schedule(kind="uniform", p0=0.5, student_only=0.0)
COMPILE = {"engine": "compile"}


class Odd(BasicBlock):
    """A block that does what torch's compiler does not understand."""

    def preactivation(self, features: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().preactivation(features)


class Forgetful(BasicBlock):
    """A block that drops some of its channels."""

    def preactivation(self, features: Tensor) -> Tensor:
        return nn.functional.dropout2d(super().preactivation(features), 0.3, self.training)


def weights(training: Trainer) -> bytes:
    return models.save_weights(training.objective.student)  # type: ignore[arg-type]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling, from nothing, without the last and slow step, in which code is made."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.fixture(scope="module")
def inductor() -> Iterator[None]:
    """Compiling to code. What has been compiled stays there for the next test."""
    torch._dynamo.reset()
    if reason := compiled.missing(torch.device("cpu")):
        pytest.skip(reason)
    yield
    torch._dynamo.reset()


def test_inductor_agrees_with_eager_at_each_of_fifty_steps(make_training: Make, inductor: None) -> None:
    """Same data, same masks, fp32, every block: fused kernels round differently, and training may spread that.

    What blocks draw at random is what Python would have drawn, forwards and backwards.
    """
    settings = {"expression": "iakd+kd", "schedule": HALF, "epochs": 10, "n": 80}
    eager, fused = (make_training(**settings, networks=pair(Forgetful), compute=c) for c in ({}, COMPILE))
    one, other = walk(eager), walk(fused)
    assert len(one.losses) == 50
    assert one.losses != other.losses  # compiled code was at work
    losses, states = compare(one, other)
    assert max(losses) < 1e-5 and max(states) < 1e-5, (losses, states)


def test_inductor_interrupted_equals_uninterrupted(make_training: Make, fit_until: FitUntil, inductor: None) -> None:
    """A process that goes on compiles anew; here it finds code in the cache on disk, as it mostly will."""
    settings = {"expression": "iakd+kd", "schedule": HALF, "compute": COMPILE, "ema": 0.9}
    whole = make_training(path="whole", networks=pair(Forgetful), **settings)
    history, _ = whole.fit()
    fit_until(make_training(path="part", networks=pair(Forgetful), **settings), 7)
    torch._dynamo.reset()
    resumed = make_training(path="part", networks=pair(Forgetful), **settings)
    again, _ = resumed.fit()
    assert weights(resumed) == weights(whole)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]


def test_swaps_never_compile_anew(make_training: Make, traced: None) -> None:
    """Three draws of the same training: what the first has compiled is all that there is."""
    counts = []
    for seed in range(3):
        make_training("iakd+kd", networks=pair(), schedule=HALF, seed=seed, epochs=8, compute=COMPILE).fit()
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] == counts[2] > 0
    assert not counters["graph_break"]


def test_only_steps_on_full_batches_are_compiled(make_training: Make, traced: None) -> None:
    """Neither an epoch's short batch nor validation and the last pass over the data, although of the same size."""
    options = {"iakd": {"bn_reestimate": True}}
    kept = Schedule(p0=1.0)
    make_training("iakd", networks=pair(), schedule=kept, options=options, batch_size=40, compute=COMPILE).fit()
    assert counters["stats"]["unique_graphs"] == 2  # whether anything can be compiled; a block of the student


def test_compiled_blocks_leave_names_and_copies_as_they_were(make_training: Make, traced: None) -> None:
    names = list(make_training("iakd").objective.student.state_dict())
    training = make_training("iakd", compute=COMPILE)
    assert list(training.objective.student.state_dict()) == names
    block = training.objective.student.blocks[0]
    assert copy.deepcopy(block)._compiled_call_impl is None  # else a copy would compute with the original's weights
    assert block._compiled_call_impl is not None


def test_a_block_that_cannot_be_compiled_runs_as_it_was(
    make_training: Make, traced: None, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"expression": "iakd", "schedule": HALF}
    eager, asked = (make_training(**settings, networks=pair(Odd), compute=c) for c in ({}, COMPILE))
    eager.fit(), asked.fit()
    assert weights(eager) == weights(asked)
    (line,) = warnings(caplog)  # for both of the student's blocks
    assert line.startswith("compute.engine: Odd cannot be compiled (")
    assert all(block._compiled_call_impl is None for block in asked.objective.student.blocks)
    assert counters["stats"]["unique_graphs"] > 0  # the teacher's


def test_an_error_in_the_compiler_of_gradients_is_no_error_of_the_training(
    make_training: Make, traced: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def as_it_is(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        return make_boxed_func(graph.forward)

    def fail(graph: object, inputs: object) -> object:
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(compiled, "BACKEND", aot_autograd(fw_compiler=as_it_is, bw_compiler=fail))
    eager, asked = (make_training("scratch", networks=pair(), compute=c) for c in ({}, COMPILE))
    eager.fit(), asked.fit()
    assert weights(eager) == weights(asked)
    (line,) = warnings(caplog)
    assert "no space left on device" in line


def test_a_signal_that_ends_the_compiler_ends_the_training(
    make_training: Make, traced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C goes to all processes. Going on later, the step is done with the block compiled."""

    def killed(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        if len(inputs) == 1:  # whether anything can be compiled
            return graph.forward
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("compiler killed")

    monkeypatch.setattr(compiled, "BACKEND", killed)
    training = make_training("scratch", networks=pair(), compute=COMPILE)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        training.fit()
    assert training.step == 0
    assert checkpoint.load(training.run.live, training.run.key) is None


def test_without_a_compiler_training_goes_on_with_one_line(
    make_training: Make, traced: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(graph: object, inputs: object) -> object:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(compiled, "BACKEND", none)
    eager, asked = (make_training("iakd", networks=pair(), compute=c) for c in ({}, COMPILE))
    eager.fit(), asked.fit()
    assert weights(eager) == weights(asked)
    (line,) = warnings(caplog)
    assert line.startswith("compute.engine: compile is not possible here (")
    assert "no compiler found" in line

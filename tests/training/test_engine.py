"""Compiled blocks and recorded steps compute what Python's own steps compute."""

import copy
import logging
import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

from iakd import models
from iakd.params import Schedule
from iakd.training import compiled
from iakd.training.engine import Engine
from iakd.training.graphs import Graphs
from iakd.training.loop import Training

Make = Callable[..., Training]
HALF = Schedule(kind="uniform", p0=0.5, solo=0.0)


class FakeRecorder:
    """Plays recordings by doing the work; like the real one, it does nothing while it records."""

    def __init__(self) -> None:
        self.warm, self.recorded, self.replayed = 0, 0, 0

    def warm_up(self, work: Callable[[], None]) -> None:
        self.warm += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def with_graphs(training: Training) -> FakeRecorder:
    recorder = FakeRecorder()
    training.engine = Engine(training._work, Graphs(training._work, recorder), training.device)
    return recorder


def compiling(monkeypatch: pytest.MonkeyPatch, backend: str) -> dict[str, str]:
    """Settings that compile, from nothing, by this backend; aot_eager takes all steps but the last and slow one."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiled, "BACKEND", backend)
    return {"engine": "compile"}


def weights(training: Training) -> bytes:
    return models.save_weights(training.network)  # type: ignore[arg-type]


def close(one: Training, other: Training, rtol: float, atol: float) -> None:
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("expression", ["scratch", "kd", "iakd", "iakd+kd", "mlkd", "mutual+standardize"])
def test_steps_played_back_do_what_steps_do(make_training: Make, expression: str) -> None:
    eager, played = (make_training(expression, schedule=HALF, epochs=12, ema=0.9) for _ in range(2))
    recorder = with_graphs(played)
    history, _ = eager.fit()
    again, _ = played.fit()
    close(eager, played, rtol=1e-5, atol=1e-6)  # a graph's learning rate is a float32 number
    assert [row["train_top1"] for row in again] == [row["train_top1"] for row in history]
    patterns = 2**3 if "iakd" in expression else 1
    assert 1 <= recorder.recorded <= 2 * patterns  # of full batches and of the short one at an epoch's end
    assert recorder.replayed > 5


def test_a_method_whose_steps_differ_is_never_played_back(make_training: Make) -> None:
    training = make_training("dkd")
    recorder = with_graphs(training)
    training.fit()
    assert recorder.warm == recorder.recorded == 0


def test_a_step_that_cannot_be_recorded_is_done_all_the_same(
    make_training: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager, played = make_training(), make_training()

    def refuse(work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(with_graphs(played), "record", refuse)
    eager.fit(), played.fit()
    close(eager, played, rtol=1e-5, atol=1e-6)
    assert "cannot be recorded (operation not permitted when stream is capturing)" in caplog.text


def test_without_a_gpu_graphs_are_eager_steps(make_training: Make, caplog: pytest.LogCaptureFixture) -> None:
    eager, asked = make_training(), make_training(compute={"engine": "graphs"})
    eager.fit(), asked.fit()
    assert weights(eager) == weights(asked)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "compute.engine: graphs need a GPU; training without"
    ]


def test_swaps_never_compile_anew(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = compiling(monkeypatch, "aot_eager")
    counts = []
    for seed in range(3):
        make_training("iakd+kd", schedule=HALF, seed=seed, epochs=8, compute=machine).fit()
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] == counts[2] > 0
    assert not counters["graph_break"]


def test_compiled_blocks_leave_names_and_copies_as_they_were(
    make_training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(make_training("iakd").network.state_dict())
    training = make_training("iakd", compute=compiling(monkeypatch, "aot_eager"))
    assert list(training.network.state_dict()) == names
    block = training.network.blocks[0]
    assert copy.deepcopy(block)._compiled_call_impl is None  # else a copy would compute with the original's weights
    assert block._compiled_call_impl is not None


def test_compiled_interrupted_equals_uninterrupted(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = compiling(monkeypatch, "aot_eager")
    whole = make_training("iakd+kd", path="whole", compute=machine, ema=0.9)
    whole.fit()
    part = make_training("iakd+kd", path="part", compute=machine, ema=0.9)
    original = part._step

    def step(batch: object) -> None:
        original(batch)  # type: ignore[arg-type]
        if part.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(part, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        part.fit()
    resumed = make_training("iakd+kd", path="part", compute=machine, ema=0.9)
    resumed.fit()
    assert weights(resumed) == weights(whole)


def test_without_a_compiler_training_goes_on_with_one_line(
    make_training: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(graph: object, inputs: object) -> object:
        raise RuntimeError("no compiler found")

    eager, asked = make_training("iakd"), make_training("iakd", compute=compiling(monkeypatch, none))  # type: ignore[arg-type]
    eager.fit(), asked.fit()
    assert weights(eager) == weights(asked)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("compute.engine: compile is not possible here (")
    assert "no compiler found" in line


def test_inductor_agrees_with_eager_over_fifty_steps(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same data, same masks, fp32: fused kernels round differently, and training spreads the difference slowly.

    One of the blocks is compiled: every other would take its seconds.
    """
    settings = {"schedule": HALF, "epochs": 10, "n": 80, "lr": 0.002}
    eager, fused = (make_training("iakd", **settings) for _ in range(2))
    compiling(monkeypatch, "inductor")
    compiled.compile_blocks([fused.network.stages[0]], 16)
    if fused.network.blocks[0]._compiled_call_impl is None:
        pytest.skip("no C++ compiler")
    history, _ = eager.fit()
    again, _ = fused.fit()
    assert eager.step == 50
    assert counters["stats"]["unique_graphs"] == 2  # the probe's and the block's
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in history], rel=1e-3)
    close(eager, fused, rtol=1e-2, atol=1e-3)

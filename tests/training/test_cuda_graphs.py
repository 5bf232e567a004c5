"""Recorded steps compute what Python's own steps compute."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from walks import compare, walk

from iakd import models
from iakd.config import Compute, Schedule
from iakd.models.cifar.resnet import BasicBlock
from iakd.models.network import Network, initialise
from iakd.training.cuda_graphs import Engine, StepGraphs, records_steps
from iakd.training.trainer import Trainer

WIDTH = 4


def tiny(seed: int, kind: type[BasicBlock] = BasicBlock) -> Network:
    stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 2, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 4))
    net = Network(stem, [[kind(WIDTH, WIDTH, 1, "B")] for _ in range(2)], head, size=8)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


def pair(kind: type[BasicBlock] = BasicBlock) -> tuple[Network, Network]:
    """A student of this kind of blocks, and a teacher."""
    return tiny(1, kind), tiny(2)


def tensors(*trees: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor))


class Tape(TorchDispatchMode):
    """Records the operations of a block, then undoes them: recording changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], list[tuple[int, Tensor]]]] = []
        self._own: dict[int, UntypedStorage] = {}  # memory allocated by the block
        self._before: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}  # other memory, and its content before
        self._random = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for tensor in tensors(args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._own and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())
        outcome = func(*args, **kwargs)
        made = []
        for position, tensor in enumerate(tensors(outcome)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._own and storage._cdata not in self._before:
                self._own[storage._cdata] = storage
                made.append((position, tensor))
        self.calls.append((func, args, kwargs, made))
        return outcome

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, content in self._before.values():
            storage.copy_(content)
        torch.set_rng_state(self._random)

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations on the current content of the same memory."""
        for func, args, kwargs, made in self.calls:
            outcome = list(tensors(func(*args, **kwargs)))
            for position, tensor in made:
                tensor.copy_(outcome[position])


class TapeRecorder:
    """A recorder for `StepGraphs` that needs no GPU."""

    def __init__(self) -> None:
        self.warm, self.recorded, self.replayed = 0, 0, 0

    def warm_up(self, work: Callable[[], None]) -> None:
        """As the real one does."""
        self.warm += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """As the real one does: nothing is changed."""
        tape = Tape()
        with tape:
            work()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay


Make = Callable[..., Trainer]
HALF = Schedule(kind="uniform", p0=0.5, student_only=0.0)


def with_graphs(training: Trainer) -> TapeRecorder:
    recorder = TapeRecorder()
    work = training.engine.work
    training.engine = Engine(work, StepGraphs(work, recorder), training.device)
    return recorder


def weights(training: Trainer) -> bytes:
    return models.save_weights(training.objective.student)  # type: ignore[arg-type]


ONE_KEY = ("ot", "sp", "pkt", "rkd", "cc", "at", "nst", "vid", "fitnet", "simkd", "srrl", "lskd", "blockkd")
SEVERAL_KEYS: dict[str, dict[str, Any]] = {  # methods whose weights change between epochs, or that have two phases
    "dkd": {"dkd": {"warmup_epochs": 2}},
    "ctkd": {"ctkd": {"epochs": 2}},
    "reviewkd": {"reviewkd": {"warmup_epochs": 2}},
    "ab": {"ab": {"pretrain": 0.5}},
    "fsp": {"fsp": {"pretrain": 0.5}},
    "ft": {"ft": {"pretrain": 0.5}},
}


@pytest.mark.parametrize(
    ("expression", "recipe"),
    [
        ("scratch", {"augment": {"mixup": {"alpha": 0.5}, "pad": 1}, "clip_norm": 1.0}),
        ("scratch", {"optimizer": "adamw", "lr": 0.01}),
        ("kd", {"lr_schedule": {"kind": "cosine"}}),
        ("iakd", {}),
        ("iakd+kd", {"precision": "bf16"}),
        ("dist", {}),
        ("mlkd", {}),
        ("mutual+standardize", {}),
        ("mutual", {"options": {"mutual": {"turns": "steps", "peer_lr": 0.01}}}),
        ("iakd+kd", {"options": {"iakd": {"form": "two_path", "paths": "teacher_to_student", "warmup": 0.5}}}),
        ("kd+rcn", {"lr": 0.01, "options": {"rcn": {"mean_only": 0.5}}}),
        *[(method, {"lr": 0.01}) for method in ONE_KEY],
        ("hints", {"lr": 0.01, "options": {"hints": {"points": 2}}}),
        *[(method, {"lr": 0.01, "options": options}) for method, options in SEVERAL_KEYS.items()],
    ],
)
def test_recorded_steps_agree_with_eager_at_each_of_fifty(
    make_training: Make, expression: str, recipe: dict[str, Any]
) -> None:
    """Same data, same masks. The learning rate of a recorded step is a float32 number; nothing else differs."""
    settings = {"expression": expression, "schedule": HALF, "epochs": 10, "ema": 0.9, **recipe}
    eager, played = (make_training(**settings, networks=pair()) for _ in range(2))
    recorder = with_graphs(played)
    one, other = walk(eager), walk(played)
    assert len(one.losses) == 50
    losses, states = compare(one, other)
    limit = 1e-2 if "precision" in recipe else 1e-5
    assert max(losses) < limit and max(states) < limit, (losses, states)
    assert [row["train_top1"] for row in played.history] == [row["train_top1"] for row in eager.history]
    patterns = 4 if "iakd" in expression else 3 if "options" in recipe else 1
    assert 1 <= recorder.recorded <= 2 * patterns  # of full batches and of the short one at an epoch's end
    assert recorder.replayed > 25


def test_a_method_whose_steps_differ_is_never_played_back(make_training: Make) -> None:
    training = make_training("crd", networks=pair(), options={"crd": {"negatives": 20}})
    recorder = with_graphs(training)
    training.fit()
    assert recorder.warm == recorder.recorded == 0


def test_a_step_that_cannot_be_recorded_is_done_all_the_same(
    make_training: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager, played = make_training(networks=pair()), make_training(networks=pair())
    original = played.objective.forward

    def loss(batch: Any, step: int) -> Any:
        terms, logits = original(batch, step)
        terms["ce"].item()
        return terms, logits

    monkeypatch.setattr(played.objective, "forward", loss)
    recorder = with_graphs(played)
    losses, states = compare(walk(eager), walk(played))
    assert max(losses) < 1e-5 and max(states) < 1e-5
    failures = [record.getMessage() for record in caplog.records if "cannot be recorded" in record.getMessage()]
    assert failures == [
        "a step cannot be recorded (operation not permitted when stream is capturing); training without graphs"
    ]
    assert recorder.recorded == 0 and recorder.warm == 1, "after a failure nothing is recorded any more"


def test_the_removed_engine_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(
        ValueError, match="compile was removed because it was never faster than eager: set auto, or graphs on a GPU"
    ):
        Compute.model_validate({"engine": "compile"})


def test_without_a_gpu_graphs_are_eager_steps(make_training: Make, caplog: pytest.LogCaptureFixture) -> None:
    eager, asked = (make_training(networks=pair(), compute=c) for c in ({}, {"engine": "graphs"}))
    eager.fit(), asked.fit()
    assert weights(eager) == weights(asked)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "compute.engine: graphs need a GPU; training without"
    ]


def test_steps_are_recorded_on_a_gpu_by_default() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert records_steps(Compute(), gpu) and records_steps(Compute(engine="graphs"), gpu)
    assert not records_steps(Compute(), cpu)
    assert not records_steps(Compute(engine="eager"), gpu)
    assert not records_steps(Compute(), gpu, processes=2), "they communicate within a step"

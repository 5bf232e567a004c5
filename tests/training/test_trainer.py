"""What a training records, when it saves, what it restores, and how it ends when numbers are no longer finite."""

import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iakd import files, models
from iakd.errors import RunFailed
from iakd.models.cifar.resnet import BasicBlock
from iakd.models.network import Network, initialise
from iakd.processes import Interrupt
from iakd.training import checkpoint
from iakd.training.trainer import EpochSums, Trainer

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]


def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps at which checkpoints are written."""
    steps: list[int] = []
    save = checkpoint.Writer.save
    monkeypatch.setattr(
        checkpoint.Writer, "save", lambda writer, state: steps.append(state["step"]) or save(writer, state)
    )
    return steps


def test_a_row_tells_rates_times_and_final_metrics(make_training: Make) -> None:
    """70 images in five steps an epoch; the rate is that of the epoch's last step."""
    training = make_training("kd", epochs=4, lr_schedule={"kind": "cosine"})
    started = time.monotonic()
    history, metrics = training.fit()
    elapsed = time.monotonic() - started
    assert [row["lr"] for row in history] == [training.timeline.lr(step) for step in (4, 9, 14, 19)]
    assert 0 < sum(row["seconds"] for row in history) < elapsed
    for row in history:
        assert row["images_per_s"] == pytest.approx(70 / row["seconds"], rel=0.05)
    assert (metrics["epochs"], metrics["steps"]) == (4, 20)
    assert metrics["train_loss"] == history[-1]["loss"]
    assert metrics["val_top1"] == history[-1]["val_top1"]


def test_validations_are_reported_when_they_are_due(make_training: Make) -> None:
    seen: list[tuple[int, float]] = []
    report = lambda epoch, row: seen.append((epoch, row["val_top1"]))  # noqa: E731
    history, _ = make_training(epochs=5, validate_every=3, on_validation=report).fit()
    assert seen == [(row["epoch"], row["val_top1"]) for row in history if "val_top1" in row]
    assert [epoch for epoch, _ in seen] == [3, 5]


def test_the_average_is_what_is_validated_and_kept(make_training: Make) -> None:
    training = make_training(epochs=2, validate_every=1, ema=0.9)
    history, metrics = training.fit()
    assert training.average is not None
    kept, average = training.objective.student.state_dict(), training.average.module.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in average.items())
    assert metrics["val_nll"] == history[-1]["val_nll"]


@pytest.mark.parametrize(("seconds", "expected"), [(0, list(range(1, 11))), (1e9, [])])
def test_checkpoints_are_saved_when_their_time_has_come(
    make_training: Make, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    steps = saved_steps(monkeypatch)
    make_training(epochs=2, compute={"checkpoint_seconds": seconds}).fit()
    assert steps == expected


class SlowDisk:
    """Writes of checkpoints wait until `open` is set; the other files are written at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.written = 0
        self._write = files.write_bytes
        monkeypatch.setattr(files, "write_bytes", self.write_bytes)

    def write_bytes(self, path: Path, content: bytes) -> None:
        if path.name == checkpoint.NAME:
            assert self.open.wait(60)
            self.written += 1
        self._write(path, content)


def test_a_slow_disk_does_not_hold_up_a_training(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a checkpoint is being written, which takes nearly as long as the training, steps are taken."""
    expected = make_training(path="quick").fit()[0]
    disk, steps = SlowDisk(monkeypatch), saved_steps(monkeypatch)
    training = make_training(path="slow", compute={"checkpoint_seconds": 1e-9})
    works = training.steps(Interrupt())
    for _ in range(training.timeline.total):
        next(works)
    assert (steps, disk.written) == ([1], 0)
    disk.open.set()
    with pytest.raises(StopIteration) as end:
        while True:
            next(works)
    assert disk.written == len(steps) >= 1, "all are written before the results are published"
    assert [row["loss"] for row in end.value.value[0]] == [row["loss"] for row in expected]


def test_a_signal_waits_for_the_last_checkpoint(
    make_training: Make, monkeypatch: pytest.MonkeyPatch, fit_until: FitUntil
) -> None:
    disk = SlowDisk(monkeypatch)
    threading.Timer(0.5, disk.open.set).start()
    part = make_training(path="part", compute={"checkpoint_seconds": 1e-9})
    fit_until(part, 4)
    state = checkpoint.load(part.run.live, "key")
    assert state is not None and state["step"] == 4


def test_a_full_disk_in_the_background_ends_the_training(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.name == checkpoint.NAME:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        make_training(compute={"checkpoint_seconds": 0}).fit()


def test_a_signal_saves_once_and_ends_the_training(
    make_training: Make, monkeypatch: pytest.MonkeyPatch, fit_until: FitUntil
) -> None:
    steps = saved_steps(monkeypatch)
    for stop in (3, 5):  # within an epoch and at its end
        fit_until(make_training(path=f"toy/students/{stop}"), stop)
    assert steps == [3, 5]


def test_times_go_on_where_a_checkpoint_left_them(make_training: Make, fit_until: FitUntil) -> None:
    """Seconds of an interrupted epoch and of the whole run are summed; the start is the first one's."""
    part = make_training(path="part")
    fit_until(part, 3)
    state = checkpoint.load(part.run.live, "key")
    assert state is not None
    assert 0 < state["epoch_seconds"] <= state["wall_seconds"]
    assert state["epoch_cpu_seconds"] > 0
    state |= {"epoch_seconds": 1000.0, "wall_seconds": 5000.0, "started": "2020-01-01T00:00:00+00:00"}
    state["epoch_cpu_seconds"] = 800.0
    checkpoint.Writer(part.run.live).save(state)
    resumed = make_training(path="part")
    history, _ = resumed.fit()
    assert 1000 < history[0]["seconds"] < 1100 and history[1]["seconds"] < 100
    assert 800 < history[0]["cpu_seconds"] < 900 and history[1]["cpu_seconds"] < 100
    assert resumed.run.started == "2020-01-01T00:00:00+00:00"
    assert 5000 < resumed.run.wall_seconds() < 5100


def test_cpu_time_is_without_the_turns_of_other_trainings(make_training: Make) -> None:
    """In each of the five turns another training computes for 0.3 s."""
    training = make_training(epochs=1)
    with Interrupt() as interrupt:
        for _ in training.steps(interrupt):
            end = time.process_time() + 0.3
            while time.process_time() < end:
                pass
    (row,) = training.history
    assert row["seconds"] > 1.5
    assert 0 < row["cpu_seconds"] < 0.7


class Noisy(Network):
    """A network whose head drops features at random."""


def noisy(seed: int) -> Network:
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 4))
    network = Noisy(stem, [[BasicBlock(4, 4, 1, "B")]], head, size=8)
    initialise(network, torch.Generator().manual_seed(seed))
    return network


def test_what_layers_draw_depends_on_the_seed_and_survives_an_interruption(
    make_training: Make, fit_until: FitUntil
) -> None:
    def make(path: str, seed: int = 0) -> Trainer:
        return make_training("scratch", path=path, seed=seed, networks=(noisy(1), noisy(2)), augment={})

    def weights(training: Trainer) -> bytes:
        training.fit()
        return models.save_weights(training.objective.student)

    torch.manual_seed(1)
    whole = weights(make("whole"))
    torch.manual_seed(2)
    assert weights(make("again")) == whole
    assert weights(make("other", seed=1)) != whole
    for stop in (3, 7):
        fit_until(make("part"), stop)
        torch.manual_seed(3)
    assert weights(make("part")) == whole


def test_a_loss_that_diverges_is_reported_with_epoch_and_step(make_training: Make) -> None:
    training = make_training(epochs=3)
    objective = training.objective

    def spoil(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments[1] == 6:  # in the second epoch
            nn.init.constant_(objective.student.head[-1].bias, math.nan)

    objective.register_forward_pre_hook(spoil)
    with pytest.raises(RunFailed, match=r"the loss is no longer finite in epoch 2 \(by step 10\)"):
        training.fit()


def test_a_validation_that_diverges_is_reported(make_training: Make) -> None:
    training = make_training(epochs=3, validate_every=1)
    training.objective.student.register_forward_hook(
        lambda module, arguments, output: output if module.training else output * math.nan
    )
    with pytest.raises(RunFailed, match=r"the validation loss is no longer finite in epoch 1 \(by step 5\)"):
        training.fit()


def test_a_signal_after_the_last_step_does_not_lose_the_result(make_training: Make) -> None:
    first = make_training(epochs=2, path="part", on_validation=lambda epoch, row: os.kill(os.getpid(), signal.SIGTERM))
    history, _ = first.fit()
    whole, _ = make_training(epochs=2, path="whole").fit()
    assert [row["loss"] for row in history] == [row["loss"] for row in whole]


def test_terms_that_come_and_go_are_averaged_over_all_images_of_the_epoch() -> None:
    sums = EpochSums(torch.device("cpu"))
    sums.add(("ce", "kd"), torch.tensor([1.0, 2.0]), torch.tensor(3), 4)
    sums.add(("ce",), torch.tensor([4.0]), torch.tensor(1), 2)
    sums.images += 6
    assert sums.loss() == pytest.approx(4 * 3 + 2 * 4)
    expected = {"loss": 20 / 6, "loss_ce": 12 / 6, "loss_kd": 8 / 6, "train_top1": 100 * 4 / 6}
    assert sums.means() == pytest.approx(expected)
    sums.reset()
    assert (sums.images, sums.loss()) == (0, 0.0)
    sums.add(("ce",), torch.tensor([1.0]), torch.tensor(1), 2)
    sums.images += 2
    assert sums.means() == {"loss": 1.0, "loss_ce": 1.0, "loss_kd": 0.0, "train_top1": 50.0}

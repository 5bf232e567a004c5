"""Trainings side by side in one process give, bit for bit, what each gives alone."""

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from iakd import models
from iakd.errors import RunFailed
from iakd.processes import Interrupt
from iakd.training.interleaved import fit_interleaved, in_turn
from iakd.training.trainer import Trainer, TrainingResult

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]
CPU = torch.device("cpu")

DIFFERENT: list[dict[str, Any]] = [
    {"expression": "iakd", "ema": 0.9},
    {"expression": "iakd+kd", "seed": 3, "epochs": 3},
    {"expression": "crd", "options": {"crd": {"negatives": 20}}, "clip_norm": 1.0},
    {"expression": "kd", "dropout": True},
    {"expression": "kd", "dropout": True, "seed": 3, "optimizer": "adamw", "lr": 0.005},
]


def made(make: Make, number: int, where: str, dropout: bool = False, **settings: Any) -> Trainer:
    training = make(path=f"{where}/{number}", **settings)
    if dropout:  # draws from torch's global generator in every step
        training.objective.student.stem.append(nn.Dropout(0.3))  # type: ignore[operator]
    return training


def ends(training: Trainer, outcome: Any) -> tuple[Any, ...]:
    """All that a training leaves, without durations."""
    history, metrics = outcome
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "images_per_s")} for row in history]
    return models.save_weights(training.objective.student), rows, metrics  # type: ignore[arg-type]


def after_each_step(training: Trainer, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Have `act` called after each of its steps."""
    original = training.steps

    def steps(interrupt: Interrupt) -> Generator[None, None, TrainingResult]:
        inner = original(interrupt)
        while True:
            try:
                next(inner)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            act()
            yield

    patch.setattr(training, "steps", steps)


@pytest.fixture
def alone(make_training: Make) -> list[tuple[Any, ...]]:
    """What each of DIFFERENT ends with alone in the process."""
    return [
        ends(one, one.fit())
        for one in (made(make_training, number, "alone", **settings) for number, settings in enumerate(DIFFERENT))
    ]


def test_together_equals_one_by_one(make_training: Make, alone: list[tuple[Any, ...]]) -> None:
    trainings = [made(make_training, number, "together", **settings) for number, settings in enumerate(DIFFERENT)]
    before = torch.get_rng_state()
    outcomes = fit_interleaved(trainings)
    assert [ends(*pair) for pair in zip(trainings, outcomes, strict=True)] == alone
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_are_taken_in_turn(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    trainings = [made(make_training, number, "together", epochs=1) for number in range(3)]
    for number, training in enumerate(trainings):
        after_each_step(training, lambda number=number: order.append(number), monkeypatch)
    fit_interleaved(trainings)
    assert order == [0, 1, 2] * trainings[0].timeline.total


def test_interrupted_together_equals_uninterrupted(
    make_training: Make, fit_until: FitUntil, alone: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was stopped before, alone; then all are by a signal within an epoch; one resumes alone."""
    fit_until(made(make_training, 0, "part", **DIFFERENT[0]), 2)
    trainings = [made(make_training, number, "part", **settings) for number, settings in enumerate(DIFFERENT)]

    def send_signal() -> None:
        if trainings[2].step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    after_each_step(trainings[2], send_signal, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        fit_interleaved(trainings)
    assert [training.step for training in trainings] == [10, 8, 8, 7, 7]
    last = made(make_training, 4, "part", **DIFFERENT[4])
    outcome = ends(last, last.fit())
    trainings = [made(make_training, number, "part", **settings) for number, settings in enumerate(DIFFERENT[:4])]
    outcomes = fit_interleaved(trainings)
    assert [*(ends(*pair) for pair in zip(trainings, outcomes, strict=True)), outcome] == alone


def test_one_that_diverges_does_not_affect_the_others(make_training: Make) -> None:
    expected = made(make_training, 0, "alone")
    wanted = ends(expected, expected.fit())
    good, bad = made(make_training, 0, "together"), made(make_training, 1, "together", lr=1e20)
    failure, outcome = fit_interleaved([bad, good])
    assert isinstance(failure, RunFailed)
    assert "together/1: the loss is no longer finite" in str(failure)
    assert ends(good, outcome) == wanted


def test_at_a_signal_each_is_asked_once_more() -> None:
    """So that it can save its state; what has ended by then, with an error or not, stays ended."""
    done: list[str] = []

    def work(name: str, steps: int, end: type[BaseException] | None = None) -> Generator[None, None, str]:
        for step in range(steps):
            yield
            if interrupt.name:
                done.append(f"{name} saved at {step}")
                raise KeyboardInterrupt(interrupt.name)
        if end:
            raise end(name)
        return name

    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt, match="third"):
        in_turn(
            [
                work("first", 9),
                work("second", 1, ValueError),
                work("third", 3, KeyboardInterrupt),
                work("fourth", 9),
                work("fifth", 1),
            ],
            CPU,
            interrupt,
        )
    assert done == ["fourth saved at 2", "first saved at 3"]


def test_what_each_draws_is_its_own() -> None:
    """Also when one of them sets the seed meanwhile."""

    def work(seed: int) -> Generator[None, None, list[float]]:
        torch.manual_seed(seed)
        drawn = []
        for _ in range(3):
            drawn.append(torch.rand(()).item())
            yield
        return drawn

    alone = [in_turn([work(seed)], CPU, Interrupt()) for seed in range(3)]
    assert in_turn([work(seed) for seed in range(3)], CPU, Interrupt()) == [drawn for (drawn,) in alone]


class FakeStream:
    """Notes what it waits for."""

    def __init__(self) -> None:
        self.waited: list[FakeStream] = []

    def wait_stream(self, other: "FakeStream") -> None:
        self.waited.append(other)


class FakeGenerator:
    """Like a GPU's: a handle on a state that can be exchanged."""

    def __init__(self, state: list[int]) -> None:
        self.state = state

    def clone_state(self) -> "FakeGenerator":
        return FakeGenerator(list(self.state))

    def graphsafe_get_state(self) -> "FakeGenerator":
        return FakeGenerator(self.state)

    def graphsafe_set_state(self, other: "FakeGenerator") -> None:
        self.state = other.state


def test_on_a_gpu_each_has_a_stream_and_a_generator_s_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the real ones would be told, as far as that can be seen without a GPU."""
    default, generator = FakeStream(), FakeGenerator([])
    current, untouched = [default], generator.state
    streams: list[FakeStream] = []
    synchronised: list[torch.device] = []

    def new(device: torch.device) -> FakeStream:
        streams.append(FakeStream())
        return streams[-1]

    @contextlib.contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        before, current[0] = current[0], stream
        try:
            yield
        finally:
            current[0] = before

    for name, fake in (
        ("Stream", new),
        ("current_stream", lambda device: current[0]),
        ("stream", on),
        ("current_device", lambda: 0),
        ("default_generators", (generator,)),
        ("synchronize", synchronised.append),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    seen: list[tuple[FakeStream, list[int]]] = []

    def work(number: int) -> Generator[None, None, list[int]]:
        for step in range(2 + number):
            generator.state.append(10 * number + step)  # in place, as drawing does
            seen.append((current[0], generator.state))
            yield
        return list(generator.state)

    assert in_turn([work(0), work(1)], torch.device("cuda"), Interrupt()) == [[0, 1], [10, 11, 12]]
    assert [stream for stream, _ in seen] == [streams[0], streams[1]] * 2 + [streams[1]]
    assert len({id(state) for _, state in seen}) == 2
    assert [stream.waited for stream in streams] == [[default], [default]]
    assert current == [default] and synchronised == [torch.device("cuda")]
    assert generator.state is untouched and not untouched

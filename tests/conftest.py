"""Shared by all tests."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests are many and small


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run whole workflows first: begun last, they would leave the other processes of `pytest -n` without work."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)


# Beginnings of the variables by which the project decides; libraries set others for good.
READ = ("CUDA_", "DVC_", "IAKD_", "LOCAL_", "RANK", "SLURM_", "TORCHELASTIC_", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """No test leaves a variable behind: in another order, others would fail by it, or not without it."""
    before = dict(os.environ)
    yield
    left = dict(before.items() ^ os.environ.items())
    assert not [name for name in left if name.startswith(READ)]


@pytest.fixture
def fit_until(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int], None]:
    """`fit_until(training, step)`: fit it until a signal stops it after that step of the whole, counted from 1."""

    def fit(training: Any, stop: int) -> None:
        original = training.train_step

        def step_and_signal(batch: object) -> None:
            original(batch)
            if training.step + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(training, "train_step", step_and_signal)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            training.fit()

    return fit


@pytest.fixture
def iakd(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from iakd import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["iakd", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit.value.code or 0), out, err

    return run

"""Shared by all tests."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests are many and small


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

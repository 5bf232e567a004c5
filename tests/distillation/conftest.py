"""Trainings whose files go to a temporary folder."""

from collections.abc import Callable
from pathlib import Path

import digit_training
import pytest

from iakd.training.trainer import Trainer


@pytest.fixture
def make_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """`digit_training.make_training`."""
    monkeypatch.chdir(tmp_path)
    return digit_training.make_training

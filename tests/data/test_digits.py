"""The embedded data set."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iakd.config import SOURCES, Dataset
from iakd.data.sources import digits, reader_of
from iakd.errors import UserError


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), digits.read(Dataset())
    assert ours.train_images.shape == (1797, 1, 8, 8)
    assert ours.test_images is None and ours.classes == list("0123456789")
    assert (ours.train_labels == theirs.target).all()
    stretched = theirs.images / 16 * 255
    assert np.abs(ours.train_images[:, 0] - stretched).max() <= 0.5
    assert set(np.unique(ours.train_images[theirs.images[:, None] == 8])) == {128}  # 127.5 goes upwards
    assert len(np.unique(ours.train_images)) == 17


def test_a_damaged_installation_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"digits\.csv\.gz cannot be read .* reinstall scikit-learn$"):
        digits.read(Dataset())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="scikit-learn is not installed"):
        digits.read(Dataset())


def test_every_source_has_a_reader_and_says_what_it_is() -> None:
    assert all(callable(reader_of(name)) and spec.summary.endswith(".") for name, spec in SOURCES.items())


def test_preparing_imports_no_torch_and_no_scikit_learn() -> None:
    code = "import sys, iakd.stages.prepare; print({'torch', 'sklearn', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

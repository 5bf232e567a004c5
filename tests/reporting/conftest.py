"""A folder with a plausible experiment and its report, written once."""

import shutil
from pathlib import Path

import fake
import pytest

from iakd.experiment.jobs import Experiment
from iakd.stages import report


@pytest.fixture(scope="session")
def _experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment]:
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = fake.example(methods=5)
        report.run(experiment)
        return folder, experiment


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _experiment: tuple[Path, Experiment]) -> Experiment:
    """The experiment of an experiment whose results, report included, lie below the current folder."""
    folder, experiment = _experiment
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return experiment

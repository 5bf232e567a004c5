"""An experiment's files and its report, written once."""

import shutil
from pathlib import Path

import fake_experiment
import pytest

from iakd.experiment.jobs import Experiment
from iakd.stages import report


@pytest.fixture(scope="session")
def _experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment]:
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = fake_experiment.example(methods=5)
        report.run(experiment)
        return folder, experiment


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _experiment: tuple[Path, Experiment]) -> Experiment:
    """An experiment whose results and report are below the current folder."""
    folder, experiment = _experiment
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return experiment

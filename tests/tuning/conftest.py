"""One finished study for the tests that compare with it or read it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import toy_study
from toy_study import ToyStudy


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> ToyStudy:
    """A study that one worker ran without interruption."""
    study = ToyStudy(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(study.folder)
        toy_study.prepare()
        study.run(workers=1)
    return study


@pytest.fixture(scope="session")
def expected(finished_study: ToyStudy) -> dict[str, Any]:
    """Its results except times."""
    return finished_study.outcome()


@pytest.fixture
def copied(finished_study: ToyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyStudy:
    """A clone of the finished study's results, without the unpublished state, in the current folder."""
    shutil.copytree(finished_study.folder / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return ToyStudy(tmp_path)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyStudy:
    """A study that has not started, in the current folder: data and a teacher are ready."""
    monkeypatch.chdir(tmp_path)
    toy_study.prepare()
    return ToyStudy(tmp_path)

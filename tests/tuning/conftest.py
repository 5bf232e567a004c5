"""One finished study for the tests that compare with it or read it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import studies


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which a study was run by one worker, uninterrupted."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(folder)
        studies.prepare()
        studies.run(studies.settings(workers=1))
    return folder


@pytest.fixture(scope="session")
def expected(finished_study: Path) -> dict[str, Any]:
    """Its results but times."""
    return studies.outcome(finished_study / studies.RESULTS)


@pytest.fixture
def copied(finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the finished study's results, without the state that is not published."""
    shutil.copytree(finished_study / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data and a teacher, to run studies in."""
    monkeypatch.chdir(tmp_path)
    studies.prepare()
    yield tmp_path

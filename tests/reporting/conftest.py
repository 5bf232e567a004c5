"""A folder with a plausible experiment and its report, written once."""

import shutil
from pathlib import Path

import fake
import pytest

from iakd.plan import Plan
from iakd.stages import report


@pytest.fixture(scope="session")
def _experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = fake.example(methods=5)
        report.run(plan)
        return folder, plan


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _experiment: tuple[Path, Plan]) -> Plan:
    """The plan of an experiment whose results, report included, lie below the current folder."""
    folder, plan = _experiment
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return plan

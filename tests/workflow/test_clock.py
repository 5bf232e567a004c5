"""The chain through Snakemake while the clock is wrong: two days ahead, and set right at the worst moment."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy

pytestmark = pytest.mark.workflow
SETTINGS: dict[str, Any] = {
    "dataset": {"name": "tiny", "source": "digits", "val": 60, "test": 200},
    "teachers": [{"arch": "resnet8", "width": 4, "name": "big"}],
    "students": [{"arch": "resnet8", "width": 4, "name": "small"}],
    "methods": {"kd": {}},
    "teach": {"seeds": [0], "recipe": {"epochs": 1, "batch_size": 1024}},
    "distill": {"seeds": [0], "transfer": 60, "recipe": {"epochs": 30, "batch_size": 32}},
    "tracking": {"enabled": False},
    "compute": {"device": "cpu", "checkpoint_seconds": 0},
}
SNAKEMAKE = ("snakemake", "--cores", "1", "--configfile", "clock.yaml", "--")
STUDENT = "tiny/students/big-small/kd/seed0"
DAYS = 2 * 86400


def date(*paths: Path) -> None:
    """Date files as if they had been made while the clock was ahead."""
    for path in paths:
        os.utime(path, (time.time() + DAYS,) * 2)


def test_a_clock_that_was_ahead_stops_nothing_and_retrains_nothing(tmp_path: Path, copy_project: "Copy") -> None:
    project = copy_project(tmp_path / "project")
    (project.path / "clock.yaml").write_text(yaml.safe_dump(SETTINGS))
    project.run(*SNAKEMAKE, "teachers")
    results = project.path / "results/tiny"
    teacher = results / "teachers/big/seed0/run.json"
    before = teacher.read_bytes()
    date(*results.glob("**/*"), *project.path.glob("logs/**/*"))
    process = project.start(*SNAKEMAKE, "students", log=tmp_path / "log")
    while not (project.path / ".state" / STUDENT / "run.json").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    date(results / "data/manifest.json", teacher.with_name("model.safetensors"))  # and now the clock is set right
    assert process.wait() == 0, (tmp_path / "log").read_text()
    assert teacher.read_bytes() == before
    student = project.path / "results" / STUDENT / "run.json"
    assert student.stat().st_mtime <= time.time()
    assert "Nothing to be done" in project.run(*SNAKEMAKE, "students")

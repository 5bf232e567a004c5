"""`compute.seeds_together` through Snakemake: a job of several seeds, though killed, makes what single ones make."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

pytestmark = pytest.mark.workflow
SETTINGS: dict[str, Any] = {
    "dataset": {"name": "tiny", "source": "digits", "val": 60, "test": 200},
    "teachers": [{"arch": "resnet8", "width": 4, "name": "big"}],
    "students": [{"arch": "resnet8", "width": 4, "name": "small"}],
    "methods": {"scratch": {}},
    "distill": {"seeds": [0, 1, 2], "transfer": 60, "recipe": {"epochs": 30, "batch_size": 32}},
    "tracking": {"enabled": False},
    "compute": {"device": "cpu", "checkpoint_seconds": 0, "seeds_together": 3},
}
STUDENTS = "students/big-small/scratch"
SNAKEMAKE = ("snakemake", "--cores", "1", "--configfile", "together.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, copy_project: "Copy") -> "Project":
    project = copy_project(tmp_path_factory.mktemp("together") / "project")
    (project.path / "together.yaml").write_text(yaml.safe_dump(SETTINGS))
    return project


def jobs(project: "Project", *command: str) -> dict[str, int]:
    printed = project.run(*command)
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE) if rule != "total"}


def models(seeds: int) -> list[str]:
    return [f"results/tiny/{STUDENTS}/seed{seed}/model.safetensors" for seed in range(seeds)]


def test_a_job_of_the_default_grid_trains_all_seeds_of_a_student(project: "Project") -> None:
    """Four methods have three seeds, the other eight have five."""
    dry = ("snakemake", "-n", "--quiet", "rules", "--config", "compute={seeds_together: 5}")
    assert {rule: n for rule, n in jobs(project, *dry).items() if "distill" in rule} == {"distill": 8, "distill_2": 4}


def test_killed_and_run_again_it_makes_what_single_trainings_make(project: "Project") -> None:
    checkpoints = [project.path / f".state/tiny/{STUDENTS}/seed{seed}/checkpoint.pt" for seed in range(3)]
    process = project.start(*SNAKEMAKE, "--", *models(3), log=project.path.parent / "killed.log")
    end = time.monotonic() + 60
    while not all(path.exists() for path in checkpoints):
        assert time.monotonic() < end, (project.path.parent / "killed.log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert jobs(project, *SNAKEMAKE, "--", *models(3)) == {"distill": 1}
    log = project.path / f"logs/tiny/{STUDENTS}/seed0.log"
    assert log.read_text().count("resuming at step") == 3

    again = (*SNAKEMAKE, "-n", "--quiet", "rules", "--config")
    assert jobs(project, *again, "compute={seeds_together: 1}", "--", *models(3)) == {}
    assert jobs(project, *again, "compute={seeds_together: 2}", "--", *models(3)) == {}
    more = ("distill={seeds: [0, 1, 2, 3]}", "--", *models(4))
    assert jobs(project, *again, *more) == {"distill_2": 1}

    together = {seed: (project.path / path).read_bytes() for seed, path in enumerate(models(3))}
    (project.path / "results").rename(project.path / "before")
    plain = ("--params", "together.yaml", "--set", "compute.seeds_together=1")
    project.run("iakd", "prepare", *plain)
    project.run("iakd", "distill", *plain, "--seed", "0", "--seed", "2")
    alone = {seed: project.path / models(3)[seed] for seed in range(3)}
    assert {seed: path.exists() for seed, path in alone.items()} == {0: True, 1: False, 2: True}
    for seed in (0, 2):
        assert alone[seed].read_bytes() == together[seed]
        assert record(alone[seed]) == record(
            project.path / "before" / alone[seed].relative_to(project.path / "results")
        )


def record(model: Path) -> dict[str, Any]:
    found = json.loads((model.parent / "run.json").read_text())
    return {name: found[name] for name in ("key", "seed", "params", "inputs", "model_sha256")}

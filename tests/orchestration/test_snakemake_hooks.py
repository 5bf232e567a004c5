"""What the Snakefile makes of settings files and of settings from the command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from iakd.config import Params, load
from iakd.errors import UserError
from iakd.orchestration.snakemake_hooks import set_up

SETTINGS: dict[str, Any] = {
    "teachers": [{"arch": "resnet14"}],
    "students": [{"arch": "resnet8"}],
    "methods": {"scratch": {}, "kd": {"tune": {"kd.temperature": [2, 4, 8]}}},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("IAKD_PARAMS", "IAKD_WITH_PARENT", "PATH"):
        monkeypatch.setenv(name, "before")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path / "params.yaml"


def given(file: Path, changes: dict[str, Any]) -> Params:
    """The settings after `--config`, which are those that the jobs read, too."""
    params = set_up([file], changes, main=False).params
    assert load(Path(os.environ["IAKD_PARAMS"])) == params
    return params


def test_a_text_stays_as_it_was_written_and_numbers_are_numbers(file: Path) -> None:
    """Snakemake hands over all values within a section as texts."""
    titles = [
        "Pairs: all of them",
        "a: b: c",
        "Run #3 # again",
        "[draft",
        "2026-11-27",
        "{x}",
        "123",
        "1e3",
        "true",
        "",
    ]
    for title in [*titles, "2020-13-45", "9" * 5000, "'quoted'", "null", "~", "!!float x"]:
        recipe = {"lr": "0.02", "nesterov": "true", "clip_norm": "null"}
        changes = {"distill": {"seeds": ["0", "1"], "recipe": recipe}, "report": {"title": title}}
        params = given(file, changes)
        assert params.report.title == title
        assert params.distill.seeds == [0, 1]
        assert (params.distill.recipe.lr, params.distill.recipe.nesterov) == (0.02, True)
        assert params.distill.recipe.clip_norm is None


def test_what_a_text_becomes_depends_on_the_setting_at_its_place(file: Path) -> None:
    changes: dict[str, Any] = {
        "dataset": {"source": "image_folder", "name": "007", "path": "/tmp/photos #2", "size": ["8", "16"]},
        "pairs": [["resnet14", "resnet8"]],
        "methods": {
            "kd": {"kd": {"temperature": "3"}, "recipe": {"epochs": "5"}, "tune": {"kd.temperature": ["2", "4", "3"]}}
        },
        "compute": {"channels_last": "false", "teacher_cache": "on", "workers": "null"},
    }
    params = given(file, changes)
    assert (params.dataset.name, params.dataset.path, params.dataset.size) == ("007", "/tmp/photos #2", (8, 16))
    method = params.methods["kd"]
    assert (method.kd.temperature, method.tune["kd.temperature"].choices) == (3.0, [2, 4, 3])
    assert params.student_recipe(params.paired[0], method).epochs == 5
    assert (params.compute.channels_last, params.compute.teacher_cache, params.compute.workers) == (False, "on", None)
    dataset: dict[str, Any] = {"source": "cifar10", "path": "null", "classes": ["1", "2"]}
    named = given(file, {"dataset": dataset, "tune": {"storage": "null"}})
    assert (named.dataset.path, named.dataset.classes, named.tune.storage) == (None, ["1", "2"], None)
    assert given(file, {"dataset": {"source": "cifar10", "classes": "5"}}).dataset.classes == 5


def test_later_files_change_earlier_ones_and_a_mistake_names_all(file: Path) -> None:
    more = file.with_name("more.yaml")
    more.write_text("distill: {recipe: {lr: 1e-2}}\nmethods: {kd: {tune: {}}}\n")
    params = set_up([file, more], {"distill": {"recipe": {"epochs": "7"}}}, main=False).params
    assert (params.distill.recipe.lr, params.distill.recipe.epochs) == (0.01, 7)
    more.write_text("distill: {seeds: [0], seeds: [1]}\n")
    with pytest.raises(UserError, match=r"more\.yaml is not valid YAML: line 1: the key 'seeds' is there twice"):
        set_up([file, more], {}, main=False)
    more.write_text("distil: {}\n")
    with pytest.raises(UserError, match=r"params\.yaml, more\.yaml with --config: distil: unknown key"):
        set_up([file, more], {"distill": {"seeds": ["0"]}}, main=False)


MANY_JOBS = """
import threading
from iakd.orchestration import snakemake_hooks as hooks

rule all:
    input: expand("{i}", i=range(12))

rule one:
    output: touch("{i}")

onstart:
    hooks.limit_no_rate(workflow)

onsuccess:
    Path("timers").write_text(str(sum(isinstance(thread, threading.Timer) for thread in threading.enumerate())))
"""


def test_no_timer_is_left_by_jobs_that_ended(tmp_path: Path) -> None:
    """Each would have Snakemake look at all jobs again, every second until its end."""
    (tmp_path / "Snakefile").write_text(MANY_JOBS)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--scheduler", "greedy", "--quiet", "all"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "timers").read_text() == "0"

"""What the Snakefile makes of settings files and of settings from the command line."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from iakd.config import Params, load
from iakd.errors import UserError
from iakd.orchestration.snakemake_hooks import (
    check_folders,
    ignore_damaged_records,
    last_line,
    report_on_the_others,
    set_up,
    stop,
)
from iakd.tracking.address import mlflow_address

ROOT = Path(__file__).parents[2]

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
    for name in ("DVC_STAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
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


def test_a_text_in_a_file_is_not_parsed_again(file: Path) -> None:
    more = file.with_name("more.yaml")
    more.write_text(
        'dataset: {name: "007", source: image_folder, path: "photos #2"}\n'
        'report: {title: "2026"}\ntracking: {experiment: "@home"}\n'
    )
    params = set_up([file, more], {}, main=False).params
    assert (params.dataset.name, params.dataset.path) == ("007", "photos #2")
    assert (params.report.title, params.tracking.experiment) == ("2026", "@home")
    assert load(Path(os.environ["IAKD_PARAMS"])) == params


def test_methods_that_are_added_to_those_of_the_file_are_said_to_be(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up([file], {"methods": {"scratch": {}}}, main=True)
    assert capsys.readouterr().err == (
        "iakd: --config adds to the settings file, which has 1 more method; to run these alone, add "
        "only={methods: [scratch]}\n"
    )
    part = set_up([file], {"methods": {"scratch": {}}, "only": {"methods": ["scratch"], "seeds": ["1"]}}, main=True)
    assert [(job.label, job.seed) for job in part.students] == [("scratch", 1)]
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file stands where the workflow keeps its state."""
    file.with_name(".state").touch()
    with pytest.raises(OSError) as raised:
        set_up([file], {}, main=True)
    with pytest.raises(SystemExit, match="2"):
        stop(raised.value)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("iakd: .state") and line.endswith(
        "move the file that is where a folder should be, then run again"
    )


@pytest.mark.parametrize("name", ["logs", "results"])
def test_folders_that_cannot_be_written_are_named_before_a_job_starts(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    check_folders([])
    Path(name).rmdir()
    Path(name).touch()
    with pytest.raises(FileExistsError) as raised:
        check_folders([])
    assert raised.value.filename == name
    Path(name).unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != name)  # root may write anywhere
    with pytest.raises(PermissionError) as raised:
        check_folders([])
    assert raised.value.filename == name


@pytest.mark.parametrize("name", ["results/x/data", "logs/x", "results/x", "results/x/data/trials/7"])
def test_folders_of_jobs_that_are_to_run_are_among_them(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Path("results/x/data/trials/7").mkdir(parents=True)
    Path("logs/x").mkdir(parents=True)
    job = SimpleNamespace(
        output=["results/x/data/manifest.json", "results/x/data/trials", "results/x/new/a/b.json"],
        log=["logs/x/data.log"],
        benchmark=None,
    )
    check_folders([job])
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != name)
    with pytest.raises(PermissionError) as raised:
        check_folders([job])
    assert raised.value.filename == name


def test_a_folder_with_braces_is_named_as_the_reason(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent / "br{a}ce"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"/br\{a\}ce: Snakemake takes braces in the name of a folder for wildcards"):
        set_up([file], {}, main=True)


def test_folders_that_dvc_expects_are_made_without_a_shell(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up([file], {}, main=True)
    assert not Path("results").exists()
    monkeypatch.setenv("DVC_STAGE", "tune")
    set_up([file], {}, main=True)
    assert Path("results/digits/tune").is_dir() and Path("results/digits/export").is_dir()
    commands = [stage["cmd"] for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()]
    assert commands and not [command for command in commands if "$" in command]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epoch 1\niakd: photos: is damaged\n\n", "iakd: photos: is damaged"),
        ("Traceback (most recent call last):\n  File …\nKeyError: 'x'\n", "KeyError: 'x'"),
        (
            "epoch 1\n",
            "ended without a reason after 'epoch 1': killed, perhaps because memory ran out; run again to resume",
        ),
        ("", "ended without a reason: killed, perhaps because memory ran out; run again to resume"),
        (None, "ended without a reason: killed, perhaps because memory ran out; run again to resume"),
    ],
)
def test_the_reason_of_a_failed_job_is_its_last_line_or_that_it_was_killed(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "log"
    if content is not None:
        path.write_text(content)
    assert last_line([str(path)]) == f"{path}: {said}"


def test_the_methods_that_are_left_can_be_reported(file: Path) -> None:
    experiment = set_up([file], {}, main=False)
    pair = "results/digits/{}/resnet14-resnet8"
    scratch, study = f"{pair.format('students')}/scratch/seed0/run.json", f"{pair.format('tune')}/kd/best.yaml"
    assert report_on_the_others(experiment, [scratch]) == "--config 'only={methods: [kd]}'"
    assert report_on_the_others(experiment, [study]) == "--config 'only={methods: [scratch]}'"
    assert report_on_the_others(experiment, [scratch, study]) is None
    assert report_on_the_others(experiment, ["results/digits/teachers/resnet14/seed0/run.json", scratch]) is None
    assert report_on_the_others(experiment, []) is None


@pytest.mark.parametrize(("below", "left"), [(".dvc/tmp/exps/standalone/tmp1", True), ("exps", False)])
def test_an_experiment_in_a_folder_of_dvc_has_its_own_results_only(
    file: Path, monkeypatch: pytest.MonkeyPatch, below: str, left: bool
) -> None:
    """Those of other seeds came with a checkout, and stay in the cache; elsewhere nothing is deleted."""
    folder = file.parent / below
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    pair = Path("results/digits/students/resnet14-resnet8")
    own, others = [pair / "kd/seed0"], [pair / "kd/seed9", pair / "dkd/seed0", Path("results/digits/teachers/x/seed0")]
    for path in (*own, *others):
        path.mkdir(parents=True)
    set_up([file], {}, main=True)
    assert own[0].exists()
    assert [path.exists() for path in others] == [not left] * 3
    assert (pair / "dkd").exists() is not left
    tracking = mlflow_address(load(file))
    home = file.parent if left else Path()
    assert tracking.database == home / "mlflow.db"
    assert tracking.artifact_location() == (home.resolve() / "mlartifacts/iakd-digits").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/x.db")
    assert mlflow_address(load(file)).uri == "sqlite:////elsewhere/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert mlflow_address(load(file)).uri == "http://server:5000"


@pytest.mark.parametrize("content", ["[1]", '{"params": 7}', '"text"', "{", "\udcff"])
def test_a_damaged_record_of_snakemake_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    from snakemake.io import IOFile
    from snakemake.persistence.file import FilePersistence

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FilePersistence, "metadata", FilePersistence.metadata)  # put back afterwards
    ignore_damaged_records()
    records, product = FilePersistence(nolock=True), IOFile("run.json")
    path = Path(records._record_path(records._metadata_path, records._get_key(product)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert records.params(product) is None
    assert records.metadata(product) is None

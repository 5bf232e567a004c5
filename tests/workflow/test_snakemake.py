"""The chain through Snakemake: killed twice on the way, it ends with what plain commands make."""

import json
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iakd import files

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

pytestmark = pytest.mark.workflow
TINY = "tests/workflow/tiny.yaml"
SNAKEMAKE = ("snakemake", "--cores", "2", "--configfile", TINY)
TIMES = {"latency_ms", "images_per_s"}


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def start_and_kill(project: "Project", pattern: str, kill: Callable[[int, int], None]) -> Path:
    """Start the workflow, kill it as soon as a checkpoint like `pattern` is there, and return the checkpoint."""
    process = project.start(*SNAKEMAKE, log=project.path.parent / "killed.log")
    found: Path = wait_for(lambda: next(project.path.glob(f".state/{pattern}/checkpoint.pt"), None))
    kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return found


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, copy_project: "Copy") -> Iterator["Project"]:
    """The finished workflow, killed on the way: everything at once while the teacher learns, then Snakemake alone."""
    project = copy_project(tmp_path_factory.mktemp("snakemake") / "project")
    start_and_kill(project, "tiny/teachers/big/seed0", os.killpg)
    start_and_kill(project, "tiny/students/*/*/*", os.kill)
    (project.path.parent / "finished.log").write_text(project.run(*SNAKEMAKE))
    yield project
    shutil.rmtree(project.path.parent)


def evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    found = sorted(folder.glob("results/**/evaluation.json"))
    return {
        str(path.relative_to(folder)): {k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES}
        for path in found
    }


def test_a_killed_workflow_ends_with_what_plain_commands_make(
    project: "Project", tmp_path: Path, copy_project: "Copy"
) -> None:
    plain = copy_project(tmp_path / "plain")
    for stage in ("prepare", "teach", "tune", "distill", "evaluate", "export", "latency", "report"):
        printed = plain.run("iakd", stage, "--params", TINY, "--set", "tracking.enabled=false")
        assert (plain.path / printed.splitlines()[-1]).exists()
    expected = evaluations(plain.path)
    assert len(expected) == 5
    assert evaluations(project.path) == expected
    for name in ("accuracy.csv", "curves.csv", "metrics.json"):
        path = f"results/tiny/evaluation/{name}"
        assert (project.path / path).read_bytes() == (plain.path / path).read_bytes()
    exported = sorted(plain.path.glob("results/tiny/export/big-small/*/model.*"))
    assert [path.name for path in exported] == ["model.onnx", "model.pt2", "model.safetensors"]
    for file in exported:
        assert (project.path / file.relative_to(plain.path)).read_bytes() == file.read_bytes()


def test_the_killed_teacher_went_on_and_the_report_is_named_last(project: "Project") -> None:
    assert "resuming at step" in (project.path / "logs/tiny/teachers/big/seed0.log").read_text()
    printed = (project.path.parent / "finished.log").read_text()
    assert printed.splitlines()[-1] == "The report: results/tiny/report/report.html"
    assert not list(project.path.glob(".state/**/checkpoint.pt"))


def test_mlflow_shows_every_training_and_trial_once(project: "Project") -> None:
    with sqlite3.connect(project.path / "mlflow.db") as database:
        rows = database.execute(
            "select p.value, r.status from runs r join tags p on p.run_uuid = r.run_uuid and p.key = 'iakd.path' "
            "where r.lifecycle_stage = 'active' and not p.value like '%/report'"
        ).fetchall()
    finished = [str(path.parent) for path in project.path.glob("results/**/run.json")]
    expected = {str(Path(path).relative_to(project.path / "results")) for path in finished}
    assert sorted(rows) == sorted((path, "FINISHED") for path in expected)
    assert len(expected) == 1 + 1 + 3 + 3 * 2 + 4  # teacher, study, trials and their seeds, students


def test_nothing_to_do_afterwards(project: "Project") -> None:
    assert "Nothing to be done" in project.run(*SNAKEMAKE)


def dry_run(project: "Project", *options: str) -> dict[str, int]:
    """How many jobs of each rule would run."""
    printed = project.run(*SNAKEMAKE, "-n", "--quiet", "rules", *options)
    if "Nothing to be done" in printed:
        return {}
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE) if rule != "total"}


AFTER = {"evaluation": 1, "export": 1, "latency": 1, "report": 1, "all": 1}  # what follows an evaluation
STUDENTS = {"distill": 4, "evaluate": 4, **AFTER}
EVERYTHING = {**STUDENTS, "prepare": 1, "teach": 1, "tune": 1, "evaluate": 5}


@pytest.mark.parametrize(
    ("change", "jobs"),
    [
        ("methods={kd: {kd: {temperature: 2.0}}}", {**STUDENTS, "distill": 2, "evaluate": 2}),
        ("distill={recipe: {lr: 0.02}}", {**STUDENTS, "tune": 1}),
        ("teach={recipe: {lr: 0.02}}", {k: v for k, v in EVERYTHING.items() if k != "prepare"}),
        ("dataset={split_seed: 1}", EVERYTHING),
        ("evaluate={batch_size: 100}", {"evaluate": 5, **AFTER}),
        ("distill={transfer: 0.5}", {**STUDENTS, "tune": 1}),
        ("compute={threads: 2}", {}),
    ],
)
def test_a_changed_setting_reruns_what_depends_on_it(project: "Project", change: str, jobs: dict[str, int]) -> None:
    assert dry_run(project, "--config", change) == jobs


@pytest.mark.parametrize(
    ("change", "before", "now"),
    [
        ("distill={recipe: {lr: 0.02}}", "recipe.lr=0.05", "recipe.lr=0.02"),
        ("methods={kd: {kd: {temperature: 2.0}}}", "method.kd.temperature=4.0", "method.kd.temperature=2.0"),
        ("tune={trials: 4}", "tune.trials=3", "tune.trials=4"),
        ("report={title: 'of {one}'}", "report.title=Interactive knowledge distillation", "report.title=of {one}"),
    ],
)
def test_a_dry_run_says_what_a_changed_setting_was_and_is(
    project: "Project", change: str, before: str, now: str
) -> None:
    printed = project.run(*SNAKEMAKE, "-n", "--config", change)
    assert f"before: {before!r} now: {now!r} \n" in printed


@pytest.mark.parametrize(
    ("source", "jobs"),
    [
        ("training/trainer.py", {k: v for k, v in EVERYTHING.items() if k != "prepare"}),
        ("evaluation/measure.py", {"evaluate": 5, **AFTER}),
        ("reporting/page.py", {"report": 1, "all": 1}),
    ],
)
def test_a_changed_source_file_reruns_what_imports_it(project: "Project", source: str, jobs: dict[str, int]) -> None:
    path = project.path / "src/iakd" / source
    text = path.read_text()
    path.write_text(text + "# changed\n")
    try:
        assert dry_run(project) == jobs
    finally:
        path.write_text(text)


def test_a_missing_product_is_made_again(project: "Project") -> None:
    path = project.path / "results/tiny/students/big-small/kd/seed1/metrics.json"
    text = path.read_bytes()
    path.unlink()
    try:
        assert dry_run(project)["distill"] == 1
    finally:
        path.write_bytes(text)


def test_after_damage_only_what_was_damaged_is_made_again(project: "Project") -> None:
    """Jobs that depend on it find their results in place, made from the same; and all are still made on request."""
    manifest, teacher, student = (
        project.path / "results/tiny" / name
        for name in ("data/manifest.json", "teachers/big/seed0/run.json", "students/big-small/kd/seed1/run.json")
    )
    before = [path.read_bytes() for path in (manifest, teacher, student)]
    manifest.write_bytes(before[0][:99])
    assert "results/tiny/data/manifest.json: missing or damaged, made again" in project.run(*SNAKEMAKE)
    assert [path.read_bytes() for path in (manifest, teacher, student)] == before
    assert "Nothing to be done" in project.run(*SNAKEMAKE)
    project.run(*SNAKEMAKE, "--forcerun", "teach")
    assert teacher.read_bytes() != before[1], "its dates"
    assert student.read_bytes() == before[2]


def test_exchanged_results_are_made_again_where_their_records_say_otherwise(project: "Project") -> None:
    """Somebody has put older results back, and Snakemake's records are of the later ones."""
    older = project.path / "results.older"
    shutil.copytree(project.path / "results", older)
    change = ("--config", "report={title: Later}")
    project.run(*SNAKEMAKE, *change)
    shutil.rmtree(project.path / "results")
    older.rename(project.path / "results")
    printed = project.run(*SNAKEMAKE, *change)
    assert "the results of 1 job do not fit these settings, sources and inputs: made again" in printed
    assert "<title>Later" in (project.path / "results/tiny/report/report.html").read_text()
    assert "Nothing to be done" in project.run(*SNAKEMAKE, *change)
    project.run(*SNAKEMAKE)


def test_a_second_workflow_says_so_and_leaves_the_first_alone(project: "Project") -> None:
    with files.lock(project.path / ".state/workflow.lock"):
        printed = project.run(*SNAKEMAKE, "--forcerun", "report", code=2)
    assert f"iakd: another workflow is running in {project.path}; wait for it to end\n" in printed
    assert (project.path / "results/tiny/report/report.html").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--config", "distil={seeds: [1]}"),
            f"iakd: {TINY} with --config: distil: unknown key (did you mean 'distill'?)\n",
        ),
        (
            ("--config", "tune={trials: many}"),
            f"iakd: {TINY} with --config: tune.trials: Input should be a valid integer",
        ),
    ],
)
def test_mistakes_in_the_settings_are_one_line(project: "Project", options: tuple[str, ...], line: str) -> None:
    printed = project.run(*SNAKEMAKE, "-n", *options, code=2)
    assert line in printed
    assert "Traceback" not in printed


def test_a_settings_file_on_the_command_line_stands_alone(project: "Project") -> None:
    (project.path / "alone.yaml").write_text(
        "dataset: {name: alone}\nteachers: [{arch: resnet8}]\nstudents: [{arch: resnet8}]\nmethods: {scratch: {}}\n"
    )
    printed = project.run("snakemake", "-n", "--quiet", "rules", "--configfile", "alone.yaml")
    assert re.search(r"^distill +3$", printed, re.MULTILINE)  # params.yaml, on top of which it is not, has 27


def test_the_workflow_s_own_report_has_the_figures_with_captions(project: "Project") -> None:
    project.run(*SNAKEMAKE, "--report", "workflow.html")
    page = (project.path / "workflow.html").read_text()
    for caption in (project.path / "workflow/report").glob("*.rst"):
        first = caption.read_text().split("\n")[0].replace("*", "")
        assert " ".join(first.split()[:4]) in page, caption.name
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?:', page)  # nothing is loaded from anywhere


def test_results_without_a_record_are_adopted_only_if_they_fit(project: "Project") -> None:
    """Last: it replaces Snakemake's records."""
    shutil.rmtree(project.path / ".snakemake")
    other = "methods={kd: {kd: {temperature: 2.0}}}"
    line = "iakd: results/tiny/students/big-small/kd/seed0 (and 1 more): made with other settings"
    assert line in project.run(*SNAKEMAKE, "-n", "--config", other, code=2)
    adopt = (*SNAKEMAKE, "--touch", "--forceall", "--quiet", "all")
    assert line in project.run(*adopt, "--config", other, code=2)
    assert dry_run(project) == {}
    assert dry_run(project, "--config", other)["distill"] == 2  # from now on Snakemake sees changes by itself
    assert line in project.run(*adopt, "--config", other, code=2)

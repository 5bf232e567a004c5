"""The chain through DVC: `dvc repro` and Snakemake agree on what is there, in a clone, too."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

pytestmark = pytest.mark.workflow
TINY = "tests/workflow/tiny.yaml"
STAGES = ("prepare", "teach", "tune", "distill", "evaluate", "export", "report")
METHODS = ("kd", "scratch")
METRICS = "results/tiny/evaluation/metrics.json"
ROW = "results/tiny/evaluation/metrics/big-small/kd.json"


def snakemake_has_nothing_to_do(project: "Project") -> bool:
    printed = project.run("snakemake", "-n")
    print(printed)  # why not
    return "Nothing to be done" in printed


ASKED = ("prepare", "teach")  # of which only Snakemake knows whether the files that they read have changed


def dvc_has_nothing_to_do(project: "Project") -> bool:
    said = project.run("dvc", "repro")
    skipped = re.findall(r"^Stage '(\w+)' didn't change, skipping$", said, re.MULTILINE)
    return skipped == [stage for stage in STAGES if stage not in ASKED] and said.count("Nothing to be done") == 2


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, copy_project: "Copy") -> Iterator["Project"]:
    """A repository of its own with small settings, after `dvc repro`; no method asks for a study."""
    project = copy_project(tmp_path_factory.mktemp("dvc") / "project")
    settings = yaml.safe_load((project.path / TINY).read_text())
    settings["methods"] = {method: {} for method in METHODS}
    del settings["pairs"], settings["report"]  # what has a default may be left out
    settings["distill"]["seeds"] = [0]
    settings["tracking"]["enabled"] = False
    (project.path / "params.yaml").write_text("# a comment\n" + yaml.safe_dump(settings, sort_keys=False))
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "start")
    project.run("dvc", "repro")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "results")
    yield project
    shutil.rmtree(project.path.parent)


def test_after_repro_neither_has_anything_to_do(project: "Project") -> None:
    assert snakemake_has_nothing_to_do(project)
    assert dvc_has_nothing_to_do(project)
    shown = json.loads(project.run("dvc", "metrics", "show", "--json"))
    rows = {path.removeprefix("results/tiny/evaluation/"): row["data"] for path, row in shown[""]["data"].items()}
    assert set(rows) == {
        "headline.json",
        "metrics/teachers/big.json",
        *(f"metrics/big-small/{m}.json" for m in METHODS),
    }
    numbers = json.loads((project.path / METRICS).read_text())["big-small"]
    assert all(rows[f"metrics/big-small/{method}.json"] == numbers[method] for method in METHODS)
    best = max(METHODS, key=lambda method: float(numbers[method]["top1"]))
    assert rows["headline.json"] == {"best": best, "best_top1": numbers[best]["top1"]}
    assert project.run("git", "show", "--format=", "--name-only") == "dvc.lock\n"  # results are DVC's, not git's


def test_plots_are_drawn_without_a_network(project: "Project") -> None:
    project.run("python", "tools/plots.py")
    page = (project.path / "dvc_plots/index.html").read_text()
    assert len(re.findall(r"<script[^>]+src=\"file://[^\"]+/vega[^\"]*\.js\"", page)) == 3
    assert "http" not in re.sub(r"https://vega\.github\.io/schema/", "", page)
    assert "#0072b2" in page and "#d55e00" in page  # the colours of two revisions
    for label in ("Test accuracy, %", "Validation accuracy, %", "epoch", "loss"):
        assert f'"title": "{label}"' in page


def test_a_clone_starts_from_the_pulled_results(project: "Project") -> None:
    store = project.path.parent / "store"
    (project.path / "results/tiny/report/.report.html.k3j8").touch()  # what a kill may leave behind is not DVC's
    project.run("dvc", "remote", "add", "--local", "--default", "store", str(store))
    project.run("dvc", "push", "--quiet")
    clone = replace(project, path=project.path.parent / "clone")
    project.run("git", "clone", "--quiet", ".", str(clone.path))
    shutil.copy(project.path / ".dvc/config.local", clone.path / ".dvc")
    clone.run("dvc", "pull", "--quiet")
    assert snakemake_has_nothing_to_do(clone)
    assert "missing provenance" not in clone.run("snakemake", "-n")
    changed = clone.run("snakemake", "-n", "--config", "distill={recipe: {epochs: 31}}")
    assert "Params have changed since last execution" in changed  # the results have a record now
    assert re.search(r"^distill +2$", changed, re.MULTILINE) and not re.search(r"^teach +", changed, re.MULTILINE)
    assert dvc_has_nothing_to_do(clone)
    pulled, pushed = (
        {path.name for path in (each.path / "results/tiny/report").iterdir()} for each in (clone, project)
    )
    assert {"report.html", "tables.tex", "figures"} < pulled == pushed - {".report.html.k3j8"}


def test_a_changed_setting_is_named(project: "Project") -> None:
    path = project.path / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("epochs: 30\n", "epochs: 31\n"))
    changed = yaml.safe_load(project.run("dvc", "status", "--json"))
    expected = [{"changed deps": {"params.yaml": {"distill": "modified"}}}]
    assert changed == {stage: expected + ["always changed"] * (stage in ASKED) for stage in STAGES}
    assert re.search(r"distill\.recipe\.epochs +30 +31$", project.run("dvc", "params", "diff"), re.MULTILINE)
    path.write_text(text)


def test_an_experiment_elsewhere_trains_students_only_and_can_be_applied(project: "Project") -> None:
    teacher = project.path / "results/tiny/teachers/big/seed0/run.json"
    before = teacher.read_bytes()
    change = "distill.recipe.epochs=2"
    project.run("dvc", "exp", "run", "--temp", "--name", "shorter", "--set-param", change)
    student = project.path / "results/tiny/students/big-small/kd/seed0/run.json"
    assert json.loads(student.read_text())["params"]["recipe"]["epochs"] == 30
    project.run("dvc", "exp", "apply", "shorter")
    assert json.loads(student.read_text())["params"]["recipe"]["epochs"] == 2
    assert teacher.read_bytes() == before  # the very record, so it was not trained again
    assert (project.path / "params.yaml").read_text().startswith("# a comment\n")
    assert snakemake_has_nothing_to_do(project)
    assert dvc_has_nothing_to_do(project)
    assert ROW in project.run("dvc", "metrics", "diff", "--all", "HEAD")
    make = ("make", "--assume-old=.venv/ready", "experiments", "ARGS=--all-branches --no-pager")
    compared = project.run("env", "COLUMNS=160", *make)
    assert re.search(r"best_top1 .*distill\.recipe\.epochs", compared)
    assert max(map(len, compared.splitlines())) < 160


def test_another_commit_is_checked_out_with_its_results(project: "Project") -> None:
    """There and back: each commit has results of other settings in the same places."""
    project.run("git", "commit", "--quiet", "--all", "--message", "fewer epochs")
    for commit, epochs in (("HEAD~1", 30), ("-", 2)):
        project.run("git", "checkout", "--quiet", commit)
        project.run("dvc", "checkout", "--quiet")
        student = project.path / "results/tiny/students/big-small/kd/seed0/run.json"
        assert json.loads(student.read_text())["params"]["recipe"]["epochs"] == epochs
        assert snakemake_has_nothing_to_do(project)
        assert dvc_has_nothing_to_do(project)


def test_results_of_other_sources_are_made_again_by_dvc_and_snakemake(project: "Project") -> None:
    """Without a record of Snakemake's, as in a clone: it would take them for current."""
    source = project.path / "src/iakd/stages/distill.py"
    text = source.read_bytes()
    shutil.rmtree(project.path / ".snakemake")
    try:
        source.write_bytes(text + b"# changed\n")
        printed = project.run("snakemake", "-n")
        assert re.search(r"^distill +2$", printed, re.MULTILINE) and not re.search(r"^teach +", printed, re.MULTILINE)
        assert "the results of 2 jobs do not fit these settings, sources and inputs" in printed
    finally:
        source.write_bytes(text)
    assert snakemake_has_nothing_to_do(project)


def test_what_snakemake_did_alone_is_adopted_by_commit(project: "Project") -> None:
    text = (project.path / "params.yaml").read_text()
    (project.path / "params.yaml").write_text(text.replace("epochs: 2\n", "epochs: 3\n"))
    project.run("snakemake", "--cores", "2", "--quiet", "all")
    project.run("dvc", "commit", "--force")
    assert dvc_has_nothing_to_do(project)
    assert snakemake_has_nothing_to_do(project)


def test_a_removed_method_leaves_the_comparison(project: "Project") -> None:
    """Last, since it changes the settings: its results stay on disk, so only the settings tell."""
    assert "scratch" in (project.path / "results/tiny/evaluation/summary.csv").read_text()
    path = project.path / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["methods"]["scratch"]
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    project.run("dvc", "repro")
    table = (project.path / "results/tiny/evaluation/summary.csv").read_text()
    assert "kd" in table and "scratch" not in table
    assert [path.name for path in (project.path / ROW).parent.iterdir()] == ["kd.json"]
    assert (project.path / "results/tiny/students/big-small/scratch").exists()

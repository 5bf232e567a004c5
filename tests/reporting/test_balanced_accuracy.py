"""What the report says where classes differ in size, and of groups and near-duplicates."""

import csv
from pathlib import Path
from typing import Any

import fake_experiment
import pytest

from iakd import files
from iakd.experiment.jobs import Experiment
from iakd.reporting import paper, tables, verdict
from iakd.reporting.results import read_comparison
from iakd.stages.report import run


def imbalanced(**more: Any) -> Experiment:
    """Two methods and their evaluations, which have the numbers in `more`, too."""
    experiment = fake_experiment.plan({"scratch": {}, "kd": {}}, epochs=5)
    fake_experiment.write(experiment, {"scratch": [80.0] * 3, "kd": [90.0] * 3})
    for job in experiment.trained:
        path = job.folder / "evaluation.json"
        top1 = files.read_json(path, "")["top1"]
        found = {"balanced_accuracy": top1 - 30, "macro_f1": top1 - 40, "majority_top1": 70.0, **more}
        files.write_json(path, {**files.read_json(path, ""), **found})
    return experiment


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_balanced_accuracy_is_shown_where_it_differs() -> None:
    page = run(imbalanced(support=[700, 100, 47, 0])).read_text()
    assert "Balanced accuracy, %" in page and "always the most frequent class" in page
    row = next(line for line in page.splitlines() if ">kd<" in line and "60.0" in line)
    assert "90.0" in row and "60.0" in row and "50.0" in row
    majority = next(line for line in page.splitlines() if "always the most frequent class" in line)
    assert ">70.0<" in majority and ">33.3<" in majority
    for support in ([282, 282, 283], [200, 250, 220]):
        assert "Balanced accuracy, %" not in run(imbalanced(support=support)).read_text()


def test_the_tables_have_it() -> None:
    comparison = read_comparison(imbalanced(support=[700, 100, 47]))
    summary = {row["method"]: row for row in tables.summary(comparison)}
    assert summary["kd"]["balanced_accuracy_mean"] == pytest.approx(60, abs=0.1)
    assert summary["kd"]["macro_f1_mean"] == pytest.approx(50, abs=0.1)
    runs = [row for row in tables.runs(comparison) if row["method"] == "scratch"]
    assert [row["balanced_accuracy"] for row in runs] == pytest.approx([50] * 3, abs=0.1)
    latex = [line.strip() for line in paper.latex(comparison).splitlines()]
    assert r"kd & 90.0 $\pm$ 0.0 & 60.0 $\pm$ 0.0 & 50.0 $\pm$ 0.0 \\" in latex
    assert r"always the most frequent class & 70.0 & 33.3 & -- \\" in latex
    assert "| kd | 90.0 ± 0.0 | 60.0 ± 0.0 | 50.0 ± 0.0 |" in tables.markdown(comparison).splitlines()
    even = read_comparison(imbalanced(support=[282, 282, 283]))
    assert "Balanced accuracy" not in paper.latex(even) + tables.markdown(even)


@pytest.mark.parametrize(("above", "warns"), [(-1.0, False), (0.0, True), (5.0, True)])
def test_a_leader_that_is_no_better_than_the_majority_is_told(above: float, warns: bool) -> None:
    top1 = read_comparison(imbalanced()).pairs[0].ranked[0].top1.mean
    experiment = imbalanced(majority_top1=top1 + above)
    found = verdict.warnings(read_comparison(experiment))
    words = "even the most accurate method, kd, is right for only 90.0 % of the test images; always answering the most"
    assert [words in warning for warning in found] == [True] * warns
    assert (words in run(experiment).read_text()) == warns


def test_evaluations_of_earlier_versions_have_none_of_it() -> None:
    experiment = fake_experiment.plan({"scratch": {}, "kd": {}}, epochs=5)
    fake_experiment.write(experiment, {"scratch": [80.0] * 3, "kd": [90.0] * 3})
    assert "Balanced accuracy" not in run(experiment).read_text()
    comparison = read_comparison(experiment)
    assert verdict.warnings(comparison) == []
    assert "balanced_accuracy_mean" not in tables.summary(comparison)[0]
    with (experiment.report / "tables.csv").open(newline="") as file:
        assert list(csv.DictReader(file))


def test_groups_and_the_search_for_near_duplicates_are_told() -> None:
    experiment = imbalanced()
    path = experiment.data.folder / "manifest.json"
    manifest = {**files.read_json(path, ""), "problems": [], "near_duplicates": [], "groups": {"train": 7, "test": 2}}
    files.write_json(path, manifest)
    page = run(experiment).read_text()
    assert "No exact duplicates or near-duplicates across splits" in page
    assert "Images of a group are in one split: 7 groups in train, 2 groups in test." in page
    files.write_json(path, {**manifest, "near_duplicates": None})
    assert "No exact duplicates across splits" in run(experiment).read_text()


@pytest.mark.parametrize(("objective", "words"), [("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy")])
def test_a_study_says_what_it_searched_for(objective: str, words: str) -> None:
    methods = {"scratch": {}, "tuned": {"method": "iakd", "iakd": {"schedule": "tuned"}}}
    experiment = fake_experiment.plan(methods, epochs=5, tune={"objective": objective})
    fake_experiment.write(experiment, {"scratch": [80.0] * 3, "tuned": [90.0] * 3})
    run(experiment)
    assert f">Validation {words}, %, by trial" in (experiment.report / "figures" / "tuning.svg").read_text()

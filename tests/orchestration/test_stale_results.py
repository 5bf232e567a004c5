"""Results that Snakemake did not see being made are taken for current only if their own record fits the settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from iakd.config import Params, parse
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, Job, plan_experiment
from iakd.orchestration import stale_results

SETTINGS: dict[str, Any] = {
    "dataset": {"name": "toy"},
    "teachers": [{"arch": "resnet14", "name": "big"}],
    "students": [{"arch": "resnet8", "name": "small"}],
    "methods": {"kd": {}, "iakd": {"iakd": {"schedule": "tuned"}}},
    "distill": {"seeds": [0]},
}


def plan_of(**changes: Any) -> Experiment:
    params: Params = parse({**SETTINGS, **changes}, "test")
    return plan_experiment(params)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """All results of SETTINGS, and no record of Snakemake's; not in a stage of DVC."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    experiment = plan_of()
    write(experiment.data.folder / "manifest.json", {"settings": experiment.data.settings})
    for job in (*experiment.studies, *experiment.trained):
        write(job.folder / "run.json", {"params": {"method": "as found", **job.settings}})
    for job in experiment.trained:
        write(job.folder / "evaluation.json", {})
    write(experiment.evaluation / "metrics.json", {})
    write(experiment.report / "figures" / "accuracy.svg", {})
    return experiment


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def nothing(path: Path) -> None:
    """The records of a Snakemake that has made nothing."""


def made_for(job: Job) -> stale_results.Records:
    """The records of a Snakemake that has made the results of this job only."""
    return {job.folder / "run.json": [repr(text) for text in job.watched] + ["'--seed 0'"]}.get


OTHER = {"methods": {"kd": {"kd": {"temperature": 2.0}}, "iakd": {"iakd": {"schedule": "tuned"}}}}


def test_results_of_these_settings_are_accepted_without_a_record(made: Experiment) -> None:
    stale_results.check(made, nothing)
    assert stale_results.other_settings(made) == []


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        (OTHER, "results/toy/students/big-small/kd/seed0"),
        (
            {"teach": {"recipe": {"lr": 0.2}}},
            r"results/toy/tune/big-small/iakd \(and 3 more\)",
        ),  # teacher, both students
        ({"dataset": {"name": "toy", "val": 10}}, r"results/toy/data \(and 4 more\)"),
    ],
)
def test_results_of_other_settings_are_refused(made: Experiment, changes: dict[str, Any], folder: str) -> None:
    with pytest.raises(UserError, match=f"^{folder}: made with other settings"):
        stale_results.check(plan_of(**changes), nothing)


def test_a_change_that_snakemake_sees_is_left_to_it(made: Experiment) -> None:
    stale_results.check(plan_of(**OTHER), made_for(made.students[0]))


def test_results_exchanged_unseen_by_snakemake_are_refused(made: Experiment) -> None:
    other = plan_of(**OTHER)
    with pytest.raises(UserError, match="kd/seed0: made with other settings"):
        stale_results.check(other, made_for(other.students[0]))  # it takes the files on disk for these


def test_in_a_stage_of_dvc_other_results_are_missing_and_the_rest_is_in_order(
    made: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "distill")
    kd, tuned = made.students
    stale_results.check(plan_of(**OTHER), nothing)
    assert not (kd.folder / "run.json").exists()
    chain = [
        made.data.folder / "manifest.json",
        made.teachers[0].folder / "run.json",
        made.studies[0].folder / "run.json",
        tuned.folder / "run.json",
        tuned.folder / "evaluation.json",
        made.evaluation / "metrics.json",
        made.report / "figures" / "accuracy.svg",
    ]
    times = [path.stat().st_mtime for path in chain]
    assert times == sorted(set(times))


def test_where_snakemake_has_records_a_stage_of_dvc_dates_nothing(
    made: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "distill")
    before = {path: path.stat().st_mtime_ns for path in Path("results").glob("**/*")}
    stale_results.check(made, made_for(made.teachers[0]))
    assert {path: path.stat().st_mtime_ns for path in before} == before

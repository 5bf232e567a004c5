"""Studies from start to end, with worker processes."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_study import BASE, ToyStudy

from iakd import files
from iakd.config import Schedule, merged, parse
from iakd.errors import RunFailed, UserError
from iakd.tuning.results import finished_trials, read_schedule
from iakd.tuning.workers import FIRST_SEED


def test_the_published_files_agree(finished_study: ToyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished_study.folder)
    rows = finished_trials(finished_study.results)
    assert [row["number"] for row in rows] == list(range(10))
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["value"])
    metrics = files.read_json(finished_study.results / "metrics.json", "")
    states = [row["state"] for row in rows]
    assert metrics == {
        "best_value": best["value"],
        "best_trial": best["number"],
        "trials": 10,
        "complete": states.count("complete"),
        "pruned": states.count("pruned"),
        "failed": 0,
    }
    assert best["value"] >= max(row["value"] for row in rows[:3])
    parameters = {name: best[name] for name in Schedule.model_fields if best[name] is not None}
    assert read_schedule(finished_study.results) == Schedule.model_validate(parameters)
    record = files.read_json(finished_study.results / "run.json", "")
    assert record["stage"] == "tune" and record["finished"] and record["inputs"] == {"data": "d", "teacher": "t"}
    for row in rows:
        folder = finished_study.results / f"trials/{row['number']:04d}"
        about = files.read_json(folder / "run.json", "")
        assert (about["trial"], about["study"], about["stage"]) == (row["number"], record["key"], "trial")
        ended = files.read_json(folder / "metrics.json", "")
        assert (ended["state"], ended["value"]) == (row["state"], row["value"])
    assert finished_study.trained() == list(range(10))
    assert [path.name for path in finished_study.state.iterdir() if path.is_file()] == ["lock"]


def test_a_finished_study_is_left_alone_without_heavy_imports(finished_study: ToyStudy) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_study.folder.rglob("*") if path.is_file()}
    code = (
        "import sys, yaml, iakd.experiment.jobs; from iakd.config import parse\n"
        "iakd.experiment.jobs.source_sha = lambda *modules: 'source'\n"
        "from iakd.experiment.jobs import plan_experiment; from iakd.stages import tune\n"
        "experiment = plan_experiment(parse(yaml.safe_load(sys.argv[1]), 'test'))\n"
        "print(tune.run(experiment, experiment.studies[0]))\n"
        "assert not {'torch', 'optuna', 'mlflow'} & set(sys.modules)"
    )
    text = finished_study.text(workers=1)
    done = subprocess.run([sys.executable, "-c", code, text], cwd=finished_study.folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "results/toy/tune/big-small/schedule.yaml\n"), done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished_study.folder.rglob("*") if path.is_file()}


def test_trials_can_be_added_and_removed(study: ToyStudy, expected: dict[str, Any]) -> None:
    study.run(trials=6, workers=1)
    six = study.outcome()
    assert six["rows"] == expected["rows"][:6]
    study.run(trials=10, workers=2)
    assert study.outcome() == expected
    assert sorted(study.trained()) == list(range(10))
    study.run(trials=6)
    assert sorted(study.trained()) == list(range(10))
    again = study.outcome()
    for name in ("rows", "schedule", "metrics.json", "history.csv"):
        assert again[name] == six[name]


def test_a_clone_of_the_results_resumes(copied: ToyStudy, expected: dict[str, Any]) -> None:
    for product in ("run.json", "schedule.yaml", "trials.csv", "history.csv", "metrics.json"):  # as Snakemake does
        (copied.results / product).unlink()
    copied.run(trials=12)
    twelve = copied.outcome()
    assert twelve["rows"][:10] == expected["rows"]
    assert sorted(copied.trained()) == [10, 11]
    (copied.results / "study.journal").unlink()
    copied.run(trials=12)  # from the trials' own files
    assert copied.outcome() == twelve
    assert sorted(copied.trained()) == [10, 11]


def test_changed_settings_restart_the_study(copied: ToyStudy, expected: dict[str, Any]) -> None:
    copied.run(trials=3, seed=1)
    keys = copied.outcome()["keys"]
    assert not set(keys) & set(expected["keys"])
    assert len(keys) == 4, "trials of the earlier study are left"
    assert sorted(copied.trained()) == list(range(3))


def test_a_mistake_in_changed_settings_leaves_earlier_results_alone(copied: ToyStudy, expected: dict[str, Any]) -> None:
    for number in range(3):
        Path(f"mistake-{number}").touch()
    with pytest.raises(UserError, match="no such thing"):
        copied.run(trials=3, seed=1)
    assert copied.outcome() == expected


def test_a_worker_that_dies_is_replaced(study: ToyStudy, expected: dict[str, Any]) -> None:
    for number in (2, 8):
        Path(f"die-{number}").touch()
    study.run(workers=2)
    assert study.outcome() == expected
    assert sorted(study.trained()) == sorted([*range(10), 2, 8])


def test_a_trial_that_keeps_killing_its_process_ends_the_study(study: ToyStudy, expected: dict[str, Any]) -> None:
    Path("die-always-2").touch()
    with pytest.raises(RunFailed, match="trial 2: its process died 3 times"):
        study.run(workers=1)
    assert study.trained().count(2) == 3
    assert "RunFailed" in files.read_json(study.state / "run.json", "")["error"]
    Path("die-always-2").unlink()
    study.run(workers=1)
    assert study.outcome() == expected


def test_a_diverging_trial_fails_and_the_study_continues(study: ToyStudy, expected: dict[str, Any]) -> None:
    Path("diverge-8").touch()
    study.run(trials=10)
    rows = study.outcome()["rows"]
    assert rows[:8] == expected["rows"][:8]
    assert (rows[8]["state"], rows[8]["value"], rows[8]["reason"]) == (
        "failed",
        None,
        "the loss is no longer finite",
    )
    assert rows[9]["state"] != "failed"
    assert files.read_json(study.results / "metrics.json", "")["failed"] == 1
    assert files.read_json(study.results / "trials/0008/metrics.json", "")["state"] == "failed"


def test_a_study_whose_trials_all_fail_fails(study: ToyStudy) -> None:
    for number in range(2):
        Path(f"diverge-{number}").touch()
    with pytest.raises(RunFailed, match="all 2 trials failed; the first one: the loss is no longer finite"):
        study.run(trials=2)
    assert not (study.results / "schedule.yaml").exists()


def test_a_bug_in_a_trial_is_not_hidden(study: ToyStudy) -> None:
    Path("raise-1").touch()
    with pytest.raises(ZeroDivisionError) as error:
        study.run()
    assert "mishaps" in "".join(error.value.__notes__), "where it happened"


def test_schedules_outside_the_space_are_named(study: ToyStudy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        study.run(trials=2, space={"p1": [0.6, 0.9]})
    assert [row["origin"] for row in study.outcome()["rows"]] == ["first", "sampler"]
    excluded = [line for line in caplog.messages if "excludes" in line]
    assert len(excluded) == 2 and "linear" in excluded[0] and "review" in excluded[1]


def test_progress_is_a_line_per_trial(study: ToyStudy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        study.run(trials=4, workers=1)
    lines = [line for line in caplog.messages if ": trial " in line]
    assert len(lines) == 4
    assert "trial 0 78.58 % complete: uniform p0=0.5" in lines[0]
    assert "best 82.53 % (trial 2); 4/4, 0 s left" in lines[3]


@pytest.mark.parametrize("address", ["sqlite:///study.db", "mysql://host/db", "postgresql://host/db"])
def test_unsuitable_storages_are_refused(study: ToyStudy, address: str) -> None:
    with pytest.raises(UserError, match=r"tune\.storage: .*postgresql\+psycopg://"):
        study.run(storage=address)


@pytest.mark.parametrize(
    ("path", "stage"), [("data/manifest.json", "prepare"), ("teachers/big/seed0/run.json", "teach")]
)
def test_what_is_missing_is_named(study: ToyStudy, path: str, stage: str) -> None:
    (Path("results/toy") / path).unlink()
    with pytest.raises(UserError, match=f"{path} does not exist.*iakd {stage}"):
        study.run()


def test_no_student_shares_its_seed_with_a_trial() -> None:
    with pytest.raises(UserError, match="seeds"):
        parse(merged(BASE, {"distill": {"seeds": [FIRST_SEED]}}), "test")

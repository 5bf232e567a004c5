"""Studies from start to end, with worker processes."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import studies
from studies import RESULTS, STATE, outcome, settings

from iakd import files
from iakd.config import Schedule, merged, parse
from iakd.errors import RunFailed, UserError
from iakd.tuning.results import finished_trials, read_schedule


def trained() -> list[int]:
    """Numbers of the trials whose training began or went on, in that order."""
    log = Path("trainings.log")
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def test_the_products_tell_one_story(finished_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished_study)
    rows = finished_trials(RESULTS)
    assert [row["number"] for row in rows] == list(range(10))
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["value"])
    metrics = files.read_json(RESULTS / "metrics.json", "")
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
    assert read_schedule(RESULTS) == Schedule.model_validate(parameters)
    record = files.read_json(RESULTS / "run.json", "")
    assert record["stage"] == "tune" and record["finished"] and record["inputs"] == {"data": "d", "teacher": "t"}
    for row in rows:
        folder = RESULTS / f"trials/{row['number']:04d}"
        about = files.read_json(folder / "run.json", "")
        assert (about["trial"], about["study"], about["stage"]) == (row["number"], record["key"], "trial")
        ended = files.read_json(folder / "metrics.json", "")
        assert (ended["state"], ended["value"]) == (row["state"], row["value"])
    assert trained() == list(range(10))
    assert [path.name for path in STATE.iterdir() if path.is_file()] == ["lock"]


def test_a_finished_study_is_left_alone_without_heavy_imports(finished_study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_study.rglob("*") if path.is_file()}
    code = (
        "import sys, yaml, iakd.experiment.jobs; from iakd.config import parse\n"
        "iakd.experiment.jobs.source_sha = lambda *modules: 'source'\n"
        "from iakd.experiment.jobs import plan_experiment; from iakd.stages import tune\n"
        "experiment = plan_experiment(parse(yaml.safe_load(sys.argv[1]), 'test'))\n"
        "print(tune.run(experiment, experiment.studies[0]))\n"
        "assert not {'torch', 'optuna', 'mlflow'} & set(sys.modules)"
    )
    text = studies.as_text(settings(workers=1))
    done = subprocess.run([sys.executable, "-c", code, text], cwd=finished_study, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{RESULTS}/schedule.yaml\n"), done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished_study.rglob("*") if path.is_file()}


def test_trials_can_be_added_and_taken_back(workplace: Path, expected: dict[str, Any]) -> None:
    studies.run(settings(trials=6, workers=1))
    six = outcome()
    assert six["rows"] == expected["rows"][:6]
    studies.run(settings(trials=10, workers=2))
    assert outcome() == expected
    assert sorted(trained()) == list(range(10))
    studies.run(settings(trials=6))
    assert sorted(trained()) == list(range(10))
    assert {name: six[name] for name in ("rows", "schedule", "metrics.json", "history.csv")} == {
        name: value for name, value in outcome().items() if name in ("rows", "schedule", "metrics.json", "history.csv")
    }


def test_a_clone_of_the_results_goes_on(copied: Path, expected: dict[str, Any]) -> None:
    for product in ("run.json", "schedule.yaml", "trials.csv", "history.csv", "metrics.json"):  # as Snakemake does
        (RESULTS / product).unlink()
    studies.run(settings(trials=12))
    twelve = outcome()
    assert twelve["rows"][:10] == expected["rows"]
    assert sorted(trained()) == [10, 11]
    (RESULTS / "study.journal").unlink()
    studies.run(settings(trials=12))  # from the trials' own files
    assert outcome() == twelve
    assert sorted(trained()) == [10, 11]


def test_changed_settings_begin_anew(copied: Path, expected: dict[str, Any]) -> None:
    studies.run(settings(trials=3, seed=1))
    keys = outcome()["keys"]
    assert not set(keys) & set(expected["keys"])
    assert len(keys) == 4, "trials of the earlier study are left"
    assert sorted(trained()) == list(range(3))


def test_a_mistake_in_changed_settings_leaves_earlier_results_alone(copied: Path, expected: dict[str, Any]) -> None:
    for number in range(3):
        Path(f"mistake-{number}").touch()
    with pytest.raises(UserError, match="no such thing"):
        studies.run(settings(trials=3, seed=1))
    assert outcome() == expected


def test_a_worker_that_dies_is_replaced(workplace: Path, expected: dict[str, Any]) -> None:
    for number in (2, 8):
        Path(f"die-{number}").touch()
    studies.run(settings(workers=2))
    assert outcome() == expected
    assert sorted(trained()) == sorted([*range(10), 2, 8])


def test_a_trial_that_keeps_killing_its_process_ends_the_study(workplace: Path, expected: dict[str, Any]) -> None:
    Path("die-always-2").touch()
    with pytest.raises(RunFailed, match="trial 2: its process died 3 times"):
        studies.run(settings(workers=1))
    assert trained().count(2) == 3
    assert "RunFailed" in files.read_json(STATE / "run.json", "")["error"]
    Path("die-always-2").unlink()
    studies.run(settings(workers=1))
    assert outcome() == expected


def test_a_diverging_trial_fails_and_the_study_goes_on(workplace: Path, expected: dict[str, Any]) -> None:
    Path("diverge-8").touch()
    studies.run(settings(trials=10))
    rows = outcome()["rows"]
    assert rows[:8] == expected["rows"][:8]
    assert (rows[8]["state"], rows[8]["value"], rows[8]["reason"]) == (
        "failed",
        None,
        "the loss is no longer finite",
    )
    assert rows[9]["state"] != "failed"
    assert files.read_json(RESULTS / "metrics.json", "")["failed"] == 1
    assert files.read_json(RESULTS / "trials/0008/metrics.json", "")["state"] == "failed"


def test_a_study_of_nothing_but_failures_fails(workplace: Path) -> None:
    for number in range(2):
        Path(f"diverge-{number}").touch()
    with pytest.raises(RunFailed, match="all 2 trials failed; the first one: the loss is no longer finite"):
        studies.run(settings(trials=2))
    assert not (RESULTS / "schedule.yaml").exists()


def test_a_bug_in_a_trial_is_not_hidden(workplace: Path) -> None:
    Path("raise-1").touch()
    with pytest.raises(ZeroDivisionError) as error:
        studies.run(settings())
    assert "_mishaps" in "".join(error.value.__notes__), "where it happened"


def test_schedules_outside_the_space_are_named(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        studies.run(settings(trials=2, space={"p1": [0.6, 0.9]}))
    assert [row["origin"] for row in outcome()["rows"]] == ["first", "sampler"]
    excluded = [line for line in caplog.messages if "excludes" in line]
    assert len(excluded) == 2 and "linear" in excluded[0] and "review" in excluded[1]


def test_progress_is_a_line_per_trial(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        studies.run(settings(trials=4, workers=1))
    lines = [line for line in caplog.messages if ": trial " in line]
    assert len(lines) == 4
    assert "trial 0 78.58 % complete: uniform p0=0.5" in lines[0]
    assert "best 82.53 % (trial 2); 4/4, 0 s left" in lines[3]


@pytest.mark.parametrize("address", ["sqlite:///study.db", "mysql://host/db", "postgresql://host/db"])
def test_unsuitable_storages_are_refused(workplace: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"tune\.storage: .*postgresql\+psycopg://"):
        studies.run(settings(storage=address))


@pytest.mark.parametrize(
    ("path", "stage"), [("data/manifest.json", "prepare"), ("teachers/big/seed0/run.json", "teach")]
)
def test_what_is_missing_is_named(workplace: Path, path: str, stage: str) -> None:
    (Path("results/toy") / path).unlink()
    with pytest.raises(UserError, match=f"{path} does not exist.*iakd {stage}"):
        studies.run(settings())


def test_no_student_shares_its_seed_with_a_trial() -> None:
    from iakd.stages.tune import SEEDS_OF_STUDENTS

    with pytest.raises(UserError, match="seeds"):
        parse(merged(studies.BASE, {"distill": {"seeds": [SEEDS_OF_STUDENTS]}}), "test")

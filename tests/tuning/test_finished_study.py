"""Reading a finished study: tables, importances, and Optuna's own command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_study import ToyStudy, settings

from iakd.errors import UserError
from iakd.experiment.jobs import plan_experiment
from iakd.tuning import results
from iakd.tuning.decisions import Search
from iakd.tuning.results import finished_trials, importances, load_study
from iakd.tuning.storage import open_study
from iakd.tuning.study import Study
from iakd.tuning.workers import TrialResult


def make(folder: Path, value: Callable[[dict[str, Any]], float], trials: int = 60) -> Path:
    """Write a study's files: trials drawn at random, with values that are a formula of their parameters."""
    params = settings(sampler={"kind": "random"}, generation=trials)
    with open_study(None, folder / "study.journal", "made") as stored:
        space = plan_experiment(params).studies[0].space
        study = Study(Search(params.tune, space, []), stored)
        for number in study.propose(0, trials):
            study.start(number)
            params_tried = study.trials()[number].params
            short = {name.removeprefix("iakd.schedule."): one for name, one in params_tried.items()}
            study.finish(number, TrialResult("complete", value(short)))
        results.write_trials(folder, study.trials(), [parameter.name for parameter in space.parameters])
    return folder


def test_rows_are_typed(finished_study: ToyStudy) -> None:
    rows = finished_trials(finished_study.results)
    first, linear = rows[0], rows[1]
    assert results.settings_in(rows) == [
        f"iakd.schedule.{name}"
        for name in ("kind", "p0", "slope", "student_only", "p1", "t_end", "cycles", "steps", "steepness")
    ]
    assert first["iakd.schedule.kind"] == "uniform" and first["iakd.schedule.p0"] == 0.5
    assert first["iakd.schedule.p1"] is None and first["iakd.schedule.cycles"] is None
    assert linear["iakd.schedule.p1"] == 1.0 and linear["epochs"] == 16 and isinstance(linear["epochs"], int)
    assert first["seconds"] > 0 and first["finished"] > first["started"] and first["reason"] is None


def test_the_copy_in_memory_holds_the_trials_that_count(finished_study: ToyStudy) -> None:
    rows = finished_trials(finished_study.results)
    trials = load_study(finished_study.results).trials
    assert [trial.value for trial in trials if trial.state.name == "COMPLETE"] == [
        row["value"] for row in rows if row["state"] == "complete"
    ]
    assert [trial.state.name.lower() for trial in trials] == [row["state"] for row in rows]
    assert {k: v for k, v in rows[3].items() if v is not None}.items() >= trials[3].params.items()


def test_importances_find_what_matters(tmp_path: Path) -> None:
    shares = importances(make(tmp_path, lambda values: 80 - 20 * abs(values["student_only"] - 0.3) + values["p0"]))
    first = "iakd.schedule.student_only"
    assert next(iter(shares)) == first and shares[first] > 0.5
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_importances_weigh_settings_that_only_some_kinds_use(tmp_path: Path) -> None:
    def value(values: dict[str, Any]) -> float:
        return 50.0 + (30.0 if values.get("steepness", 0.0) > 10 else 0.0) + values["p0"]

    shares = {
        name.removeprefix("iakd.schedule."): share
        for name, share in importances(make(tmp_path, value, trials=90)).items()
    }
    assert set(shares) >= {"steepness", "steps", "cycles"}
    assert shares["steepness"] > shares["t_end"] and shares["kind"] > shares["student_only"]


def test_importances_are_the_same_in_every_process(finished_study: ToyStudy) -> None:
    code = "import json; from pathlib import Path; from iakd.tuning.results import importances; import sys\n"
    code += "print(json.dumps(importances(Path(sys.argv[1]))))"
    command = [sys.executable, "-c", code, str(finished_study.results)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = importances(finished_study.results)
    assert here and done.stdout == json.dumps(here) + "\n"


def test_there_are_no_importances_without_differences(tmp_path: Path) -> None:
    assert importances(make(tmp_path, lambda values: 80.0, trials=12)) == {}
    few = tmp_path / "few"
    few.mkdir()
    assert importances(make(few, lambda values: values["p0"], trials=4)) == {}


@pytest.mark.parametrize("missing", ["trials.csv", "study.journal"])
def test_a_missing_file_is_one_line(copied: ToyStudy, missing: str) -> None:
    (copied.results / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} does not exist: run `iakd tune`"):
        load_study(copied.results)


def test_optunas_command_line_reads_the_study(finished_study: ToyStudy) -> None:
    command = [
        str(Path(sys.executable).parent / "optuna"),
        "trials",
        "--format",
        "json",
        "--study-name",
        "toy/big-small/iakd-tuned",
    ]
    command += ["--storage", str(finished_study.results / "study.journal")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    rows = finished_trials(finished_study.results)
    assert [(trial["number"], trial["state"].lower(), *trial["value"].values()) for trial in shown] == [
        (row["number"], row["state"], row["value"]) for row in rows
    ]
    assert shown[1]["params"]["iakd.schedule.kind"] == "linear"

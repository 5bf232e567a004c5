"""Every record that a comparison reads back: a change is one line, never a traceback or another number."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_experiment
import pytest

from iakd import files
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment
from iakd.experiment.run_dir import HISTORY, METRICS, RUN, damaged_products
from iakd.files import with_hash
from iakd.reporting import tables
from iakd.reporting.results import read_comparison, read_study
from iakd.tuning.results import finished_trials, up_to_date

WRONG: list[Any] = [None, [], {}, -1, 1e9, "x", True, [None], {"a": []}]
GONE = object()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A finished experiment with a study, and with all hashes that trainings and evaluations write."""
    monkeypatch.chdir(tmp_path)
    methods = {"kd": {}, "iakd": {"iakd": {"schedule": "tuned"}}}
    experiment = fake_experiment.plan(methods, seeds=(0, 1), epochs=10)
    fake_experiment.write(experiment, lambda job: 91.0 + job.seed)
    for job in experiment.trained:
        evaluation, record = (json.loads((job.folder / name).read_text()) for name in ("evaluation.json", RUN))
        files.write_json(job.folder / "evaluation.json", with_hash(evaluation))
        files.write_json(job.folder / RUN, record | hashes(job.folder))
    return experiment


def hashes(folder: Path) -> dict[str, Any]:
    return {"sha256": {name: files.sha256_file(folder / name) for name in (HISTORY, METRICS)}}


def read(experiment: Experiment) -> Any:
    """All that the report's tables show."""
    comparison = read_comparison(experiment)
    (study,) = experiment.studies
    trials = finished_trials(study.folder)
    found = read_study(study, 3, trials, dict)
    shown = [tables.runs(comparison), tables.summary(comparison), tables.curves(comparison), tables.metrics(comparison)]
    return [shown, found.best, found.pareto_front, found.epochs]


def damages(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The record with a wrong value, or without it, at each place of its first two levels."""
    yield from (("the whole", wrong) for wrong in WRONG)
    for name, value in record.items():
        for wrong in (*WRONG, GONE):
            yield f"{name}: {wrong}", changed(record, name, wrong)
        if isinstance(value, dict):
            for inner in value:
                for wrong in (None, [], -1, "x", GONE):
                    yield f"{name}.{inner}: {wrong}", {**record, name: changed(value, inner, wrong)}


def changed(record: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    rest = {key: old for key, old in record.items() if key != name}
    return rest if value is GONE else {**rest, name: value}


@pytest.mark.parametrize("name", [RUN, METRICS, "evaluation.json"])
def test_a_record_of_a_training(made: Experiment, name: str) -> None:
    """Of what has a hash, no change is accepted but to times, which are measured again and again."""
    before = read(made)
    path = made.students[-1].folder / name
    text = path.read_text()
    for what, damaged in damages(json.loads(text)):
        path.write_text(json.dumps(damaged))
        try:
            found = read(made)
        except UserError as error:
            assert str(error).startswith(str(path.parent)) and "\n" not in str(error), what
        else:
            assert (
                found == before or name == RUN or what.partition(":")[0] in ("latency_ms", "images_per_s", "sha256")
            ), what
        if name == RUN:
            run = run_dir.Run(made.students[-1].path, "distill", json.loads(text)["key"], {}, 0, {}, {})
            try:
                assert run.finished in (True, False)
            except UserError as error:
                assert str(path) in str(error), what
    path.write_text(text)
    assert read(made) == before


@pytest.mark.parametrize("change", ["", "epoch,loss\n", "epoch,loss,seconds\n1,nan,1\n"])
def test_a_history(made: Experiment, change: str) -> None:
    path = made.students[-1].folder / HISTORY
    path.write_text(change)
    with pytest.raises(UserError, match=r"history\.csv is damaged \(its SHA-256 is not the one in run\.json\): delete"):
        read(made)
    record = json.loads((path.parent / RUN).read_text())
    assert damaged_products(path.parent, record) == [HISTORY]
    assert damaged_products(path.parent, record, only=(METRICS,)) == []


def test_the_metrics_of_a_study(made: Experiment) -> None:
    (study,) = made.studies
    path = study.folder / METRICS
    text = path.read_text()
    for what, damaged in damages({**json.loads(text), "pareto_front": [0]}):
        path.write_text(json.dumps(damaged))
        try:
            read(made)
        except UserError as error:
            assert str(error).startswith(str(path)), what
        run = run_dir.Run(study.path, "tune", "key", {}, 0, {}, {})
        assert not up_to_date(run, 24), what


@pytest.mark.parametrize(
    ("column", "value"), [("value", "many"), ("value", ""), ("state", "done"), ("seconds", "x"), ("number", "one")]
)
def test_a_trial(made: Experiment, column: str, value: str) -> None:
    (study,) = made.studies
    path = study.folder / "trials.csv"
    header, first, *rest = path.read_text().split("\n")
    cells = first.split(",")
    cells[header.split(",").index(column)] = value
    path.write_text("\n".join([header, ",".join(cells), *rest]))
    with pytest.raises(
        UserError, match=r"trials\.csv is damaged \((columns are missing|trial 0)\): run `iakd tune` again"
    ):
        read(made)

"""What MLflow is told about a run, from its files alone."""

import time
from pathlib import Path

import pytest
import trees

from iakd import files
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS, STATE
from iakd.tracking import content
from iakd.tracking.scan import scan, signature


def read_all() -> list[content.Content]:
    return [content.read(found) for found in scan("toy")]


def test_names_say_what_a_run_is(tree: Path) -> None:
    for run in (trees.teacher(), trees.student(3), trees.study(), trees.trial(7)):
        trees.complete(run)
    assert [run.name for run in read_all()] == [
        "iakd-linear seed 3",
        "resnet20w8 seed 0",
        "study T-S",
        "trial 7",
    ]


def test_studies_come_before_their_trials(tree: Path) -> None:
    trees.complete(trees.trial(0))
    with trees.study().open():
        first, second = read_all()
    assert (first.key, first.status) == ("study-key", content.RUNNING)
    assert second.parent == first.path


def test_times_grow_with_the_epochs_and_stay_within_the_run(tree: Path) -> None:
    trees.complete(trees.student(), epochs=4)
    record = files.read_json(RESULTS / trees.student().path / "run.json", "")
    record["finished"] = record["started"][:-6].replace(record["started"][:4], "2999") + "+00:00"
    files.write_json(RESULTS / trees.student().path / "run.json", record)
    (run,) = read_all()
    times = {point.step: point.timestamp - run.started for point in run.rows}
    assert times == {1: 2000, 2: 4000, 3: 6000, 4: 8000}
    record["finished"] = record["started"]  # a resumed run's epochs may add up to more than its last attempt
    files.write_json(RESULTS / trees.student().path / "run.json", record)
    (run,) = read_all()
    assert {point.timestamp for point in run.rows} == {run.started}


def test_values_that_were_not_measured_are_not_told(tree: Path) -> None:
    trees.complete(trees.student(), epochs=4)
    (run,) = read_all()
    assert [point.step for point in run.rows if point.name == "val_top1"] == [2, 4]
    assert "epoch" not in {point.name for point in run.rows}


def test_final_numbers_are_told_once(tree: Path) -> None:
    trees.complete(trees.student(), epochs=4)
    trees.evaluated(trees.student(), 91.5)
    (run,) = read_all()
    final = {point.name: (point.value, point.step) for point in run.results["metrics.json"]}
    assert final == {"val_nll": (0.25, 0), "epochs": (4, 0)}  # val_top1 is the last epoch's: it stands in the history
    test = {point.name: (point.value, point.step) for point in run.results["evaluation.json"]}
    assert test == {"test_top1": (91.5, 0), "test_nll": (0.5, 0), "test_n": (100, 0)}


def test_a_final_number_that_differs_from_the_last_epochs_ends_its_curve(tree: Path) -> None:
    path = trees.complete(trees.student(), epochs=4)
    files.write_json(path / "metrics.json", {"val_top1": 60.0})
    (run,) = read_all()
    (final,) = run.results["metrics.json"]
    last = max((point for point in run.rows if point.name == "val_top1"), key=lambda point: point.step)
    assert (final.value, final.step) == (60.0, last.step)
    assert final.timestamp >= last.timestamp


def test_settings_become_flat_parameters_within_limits() -> None:
    flat = content.flat({"recipe": {"lr": 1e-4, "milestones": [0.5], "ema": None}, "iakd+kd": True, "n": "x" * 9000})
    assert flat == {
        "recipe.lr": "0.0001",
        "recipe.milestones": "[0.5]",
        "recipe.ema": "null",
        "iakd_kd": "true",
        "n": "x" * 500,
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("boom"), "FAILED"), (KeyboardInterrupt("SIGTERM"), "KILLED"), (None, "KILLED")],
)
def test_how_a_run_ended(tree: Path, error: BaseException | None, status: str) -> None:
    if error is None:
        trees.killed(trees.student(), 2)
    else:
        with pytest.raises(type(error)), trees.student().open():
            raise error
    (run,) = read_all()
    assert run.status == status
    assert run.ended and run.ended >= run.started


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"key": "k"}'),
        ("run.json", '{"key": "k", "stage": "distill", "seed": 0, "started": "x", "finished": "y"}'),
        ("metrics.json", "\ufffd"),
        ("evaluation.json", "[1]"),
        ("history.csv", "epoch,loss\n1,broken\n"),
        ("history.csv", "epoch,loss\n1,2,3\n"),
    ],
)
def test_damage_is_named(tree: Path, name: str, text: str) -> None:
    path = trees.complete(trees.student()) / name
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)):
        read_all()


def test_a_run_that_ends_while_it_is_looked_at_is_never_missed(tree: Path) -> None:
    with trees.student().open() as run:
        (live,) = scan("toy")
        assert live.live and live.held
        run.finish(trees.rows(2), {})
        assert [(found.live, found.held) for found in scan("toy")] == [(False, False)]
        with pytest.raises(OSError):
            content.read(live)


def test_the_history_of_an_earlier_run_is_not_taken_for_the_new_ones(tree: Path) -> None:
    trees.killed(trees.student(key="old"), 9)
    time.sleep(0.1)
    with trees.student(key="new").open() as run:
        (shown,) = read_all()
        assert (shown.key, shown.rows) == ("new", [])
        trees.show(run, 2)
        (shown,) = read_all()
        assert {point.step for point in shown.rows} == {1, 2}


def test_a_folder_that_another_run_takes_over_is_not_mixed_up(tree: Path) -> None:
    trees.complete(trees.student(key="old"))
    (found,) = scan("toy")
    trees.complete(trees.student(key="new"), epochs=9)
    with pytest.raises(OSError, match="changed"):
        content.read(found)


def test_the_signature_covers_what_is_settled(tree: Path) -> None:
    seen = {signature(scan("toy"))}
    with trees.student().open() as run:
        seen.add(signature(scan("toy")))
        trees.show(run, 1)
        seen.add(signature(scan("toy")))
        assert len(seen) == 1
        run.finish(trees.rows(2), {})
    seen.add(signature(scan("toy")))
    trees.evaluated(trees.student(), 90)
    seen.add(signature(scan("toy")))
    trees.killed(trees.teacher(), 1)
    seen.add(signature(scan("toy")))
    files.write_text(RESULTS / "toy" / "report" / "report.html", "<html>")
    seen.add(signature(scan("toy")))
    assert len(seen) == 5


def test_asking_whether_a_run_is_live_leaves_no_trace(tree: Path) -> None:
    run = trees.student()
    assert not files.held(run.live / "lock")
    assert not (STATE / run.path).exists()
    with run.open():
        assert files.held(run.live / "lock")
    assert not files.held(run.live / "lock")

"""What MLflow shows of a run, from its files alone."""

import time
from pathlib import Path

import fake_runs
import pytest

from iakd import files
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS, STATE
from iakd.tracking import content
from iakd.tracking.scan import scan, signature


def read_all() -> list[content.RunContent]:
    return [content.read_content(run) for run in scan("toy")]


def test_names_say_what_a_run_is(tree: Path) -> None:
    for run in (
        fake_runs.teacher(),
        fake_runs.student(3),
        fake_runs.study(),
        fake_runs.trial(7),
        fake_runs.trial_seed(7, 1),
    ):
        fake_runs.train(run)
    assert [run.name for run in read_all()] == [
        "iakd-linear seed 3",
        "resnet20w8 seed 0",
        "study T-S iakd-tuned",
        "trial 7",
        "trial 7, seed 1",
    ]


def test_studies_come_before_their_trials(tree: Path) -> None:
    fake_runs.train(fake_runs.trial_seed(0, 1))
    fake_runs.train(fake_runs.trial(0))
    with fake_runs.study().open():
        first, second, third = read_all()
    assert (first.key, first.status, first.parent) == ("study-key", content.RUNNING, None)
    assert (second.parent, third.parent) == (first.path, second.path)


def test_times_follow_the_epochs_and_stay_within_the_run(tree: Path) -> None:
    fake_runs.train(fake_runs.student(), epochs=4)
    record = files.read_json(RESULTS / fake_runs.student().path / "run.json", "")
    record["finished"] = record["started"][:-6].replace(record["started"][:4], "2999") + "+00:00"
    files.write_json(RESULTS / fake_runs.student().path / "run.json", record)
    (run,) = read_all()
    times = {point.step: point.timestamp - run.started for point in run.history}
    assert times == {1: 2000, 2: 4000, 3: 6000, 4: 8000}
    record["finished"] = record["started"]  # a resumed run's epochs may add up to more than its last attempt
    files.write_json(RESULTS / fake_runs.student().path / "run.json", record)
    (run,) = read_all()
    assert {point.timestamp for point in run.history} == {run.started}


def test_values_that_were_not_measured_are_left_out(tree: Path) -> None:
    fake_runs.train(fake_runs.student(), epochs=4)
    (run,) = read_all()
    assert [point.step for point in run.history if point.name == "val_top1"] == [2, 4]
    assert "epoch" not in {point.name for point in run.history}


def test_final_numbers_are_shown_once(tree: Path) -> None:
    fake_runs.train(fake_runs.student(), epochs=4)
    fake_runs.evaluate(fake_runs.student(), 91.5)
    (run,) = read_all()
    final = {point.name: (point.value, point.step) for point in run.results["metrics.json"]}
    assert final == {"val_nll": (0.25, 0), "epochs": (4, 0)}  # val_top1 is the last epoch's: the history has it
    test = {point.name: (point.value, point.step) for point in run.results["evaluation.json"]}
    assert test == {"test_top1": (91.5, 0), "test_nll": (0.5, 0), "test_n": (100, 0)}


def test_a_final_number_that_differs_from_the_last_epochs_ends_its_curve(tree: Path) -> None:
    path = fake_runs.train(fake_runs.student(), epochs=4)
    files.write_json(path / "metrics.json", {"val_top1": 60.0})
    (run,) = read_all()
    (final,) = run.results["metrics.json"]
    last = max((point for point in run.history if point.name == "val_top1"), key=lambda point: point.step)
    assert (final.value, final.step) == (60.0, last.step)
    assert final.timestamp >= last.timestamp


def test_settings_become_flat_parameters_within_limits() -> None:
    flat = content.flat_params(
        {"recipe": {"lr": 1e-4, "milestones": [0.5], "ema": None}, "iakd+kd": True, "n": "x" * 9000}
    )
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
        fake_runs.kill(fake_runs.student(), 2)
    else:
        with pytest.raises(type(error)), fake_runs.student().open():
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
def test_a_damaged_file_is_named(tree: Path, name: str, text: str) -> None:
    path = fake_runs.train(fake_runs.student()) / name
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)):
        read_all()


def test_a_run_that_ends_during_a_scan_is_never_missed(tree: Path) -> None:
    with fake_runs.student().open() as run:
        (live,) = scan("toy")
        assert live.live and live.locked
        run.finish(fake_runs.history(2), {})
        assert [(found.live, found.locked) for found in scan("toy")] == [(False, False)]
        with pytest.raises(OSError):
            content.read_content(live)


def test_an_earlier_runs_history_is_not_shown_as_the_new_ones(tree: Path) -> None:
    fake_runs.kill(fake_runs.student(key="old"), 9)
    time.sleep(0.1)
    with fake_runs.student(key="new").open() as run:
        (shown,) = read_all()
        assert (shown.key, shown.history) == ("new", [])
        fake_runs.write_history(run, 2)
        (shown,) = read_all()
        assert {point.step for point in shown.history} == {1, 2}


def test_a_folder_that_another_run_takes_over_is_not_mixed_up(tree: Path) -> None:
    fake_runs.train(fake_runs.student(key="old"))
    (found,) = scan("toy")
    fake_runs.train(fake_runs.student(key="new"), epochs=9)
    with pytest.raises(OSError, match="changed"):
        content.read_content(found)


def test_the_signature_covers_what_no_process_is_working_on(tree: Path) -> None:
    seen = {signature(scan("toy"))}
    with fake_runs.student().open() as run:
        seen.add(signature(scan("toy")))
        fake_runs.write_history(run, 1)
        seen.add(signature(scan("toy")))
        assert len(seen) == 1
        run.finish(fake_runs.history(2), {})
    seen.add(signature(scan("toy")))
    fake_runs.evaluate(fake_runs.student(), 90)
    seen.add(signature(scan("toy")))
    fake_runs.kill(fake_runs.teacher(), 1)
    seen.add(signature(scan("toy")))
    files.write_text(RESULTS / "toy" / "report" / "report.html", "<html>")
    seen.add(signature(scan("toy")))
    assert len(seen) == 5


def test_checking_whether_a_run_is_live_leaves_no_trace(tree: Path) -> None:
    run = fake_runs.student()
    assert not files.held(run.live / "lock")
    assert not (STATE / run.path).exists()
    with run.open():
        assert files.held(run.live / "lock")
    assert not files.held(run.live / "lock")

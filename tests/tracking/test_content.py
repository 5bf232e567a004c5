"""What MLflow shows of a run, from its files alone."""

import time
from collections.abc import Callable
from pathlib import Path

import fake_runs
import pytest

from iakd import files
from iakd.config import Params
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS, STATE, plan_experiment
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
        "iakd-linear seed 3, T-S",
        "teacher resnet20w8 seed 0",
        "study iakd-tuned, T-S",
        "iakd-tuned trial 7, T-S",
        "iakd-tuned trial 7 seed 1, T-S",
    ]


def test_trainings_of_other_lengths_have_other_names(tree: Path) -> None:
    run = fake_runs.student()
    run.params = {"recipe": {"epochs": 20}}
    fake_runs.train(run)
    assert [run.name for run in read_all()] == ["iakd-linear seed 0, T-S, 20 epochs"]


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
    files.write_record(RESULTS / fake_runs.student().path / "run.json", record)
    (run,) = read_all()
    times = {point.step: point.timestamp - run.started for point in run.history}
    assert times == {1: 2000, 2: 4000, 3: 6000, 4: 8000}
    record["finished"] = record["started"]  # a resumed run's epochs may add up to more than its last attempt
    files.write_record(RESULTS / fake_runs.student().path / "run.json", record)
    (run,) = read_all()
    assert {point.timestamp for point in run.history} == {run.started}


def test_values_that_were_not_measured_are_left_out(tree: Path) -> None:
    fake_runs.train(fake_runs.student(), epochs=4)
    (run,) = read_all()
    assert [point.step for point in run.history if point.name == "val_top1"] == [2, 4]
    assert {"epoch", "step"}.isdisjoint({point.name for point in run.history})


def test_final_numbers_are_shown_once(tree: Path) -> None:
    fake_runs.train(fake_runs.student(), epochs=4)
    fake_runs.evaluate(fake_runs.student(), 91.5)
    (run,) = read_all()
    final = {point.name: (point.value, point.step) for point in run.results["metrics.json"]}
    assert final == {"val_nll": (0.25, 0)}  # val_top1 is the last epoch's: the history has it
    assert run.tags["iakd.epochs"] == "4"
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


def test_a_student_shows_the_settings_by_which_it_differs(settings: Callable[..., Params]) -> None:
    params = settings()
    jobs = {job.label: job for job in plan_experiment(params).students if job.seed == 0}
    shown = {label: content.shown_params(job.settings, "distill") for label, job in jobs.items()}
    recipe = {f"recipe.{name}" for name in ("epochs", "batch_size", "optimizer", "lr", "weight_decay")}
    student = {"network.arch", "network.width", "network.shortcut"}
    kd = {"method", "init", "kd.temperature", "kd.ce_weight", "kd.kd_weight"}
    assert set(shown["scratch"]) == {*recipe, *student, "method", "init"}
    assert set(shown["kd-hot"]) == {*recipe, *student, *kd}
    assert (shown["kd-hot"]["kd.temperature"], shown["kd-hot"]["method"]) == ("8.0", "kd")
    assert shown["kd"]["recipe.lr"] == str(params.distill.recipe.lr)


def test_a_schedule_shows_what_its_kind_uses() -> None:
    schedule = {"kind": "uniform", "p0": 0.5, "p1": 1.0, "t_end": 0.8, "slope": 0.0, "student_only": 0.2, "steps": 4}
    settings = {"method": {"method": "iakd", "iakd": {"schedule": schedule}}, "recipe": {"epochs": 9, "ema": 0.9}}
    assert content.shown_params(settings, "distill") == {
        "method": "iakd",
        "iakd.schedule.kind": "uniform",
        "iakd.schedule.p0": "0.5",
        "iakd.schedule.slope": "0.0",
        "iakd.schedule.student_only": "0.2",
        "recipe.epochs": "9",
        "recipe.ema": "0.9",
    }


def test_a_study_shows_what_it_searches() -> None:
    space = {"recipe.lr": {"low": 0.01, "high": 0.2, "log": True, "choices": None, "when": {}}}
    settings = {"method": {"method": "kd", "tune": space}, "tune": {"seeds": 3}}
    assert content.shown_params(settings, "tune") == {
        "method": "kd",
        "tune.seeds": "3",
        "space.recipe.lr": '{"low": 0.01, "high": 0.2, "log": true}',
    }
    assert content.shown_params(settings, "trial") == {"method": "kd"}


def test_a_run_names_its_data(tree: Path) -> None:
    fake_runs.train(fake_runs.student())
    (run,) = read_all()
    assert [(data.name, data.digest, data.context, data.profile) for data in run.data] == [
        ("toy", "d" * 12, "training", {})
    ]
    fake_runs.manifest(sha256="other data")
    assert read_all()[0].data == run.data
    fake_runs.manifest()
    fake_runs.evaluate(fake_runs.student(), 90.0)
    train, test = read_all()[0].data
    assert (train.name, train.digest, train.profile["num_rows"], train.profile["num_elements"]) == (
        "toy",
        "d" * 12,
        90,
        90 * 24,
    )
    assert (test.name, test.digest, test.context, test.profile["num_rows"]) == ("toy test", "test" * 3, "testing", 10)


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

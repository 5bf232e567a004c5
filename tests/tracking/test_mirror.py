"""MLflow as a mirror of the files: exactly one complete run for each, whatever happens."""

import base64
import contextlib
import json
import logging
import math
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fake_runs
import pytest
from mlflow_view import MlflowView

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import RESULTS, STATE, StudentJob, plan_experiment
from iakd.experiment.run_dir import Run
from iakd.tracking.address import MlflowAddress, tracking_address
from iakd.tracking.content import MetricValue
from iakd.tracking.database import MlflowTables
from iakd.tracking.mirror import DatabaseReplaced, Mirror, sync
from iakd.tracking.mlflow_client import RunStore
from iakd.tracking.plan import planned
from iakd.tracking.scan import scan


@pytest.fixture
def mirror(params: Params) -> Callable[[], None]:
    """Mirror once, in a process that has done so before, as the follower does."""
    address = tracking_address(params)
    assert address
    address.folder.mkdir(parents=True)
    inner = Mirror(address, planned(params))

    def update() -> None:
        assert inner.update(scan(address.dataset), timeout=1).complete

    return update


def test_a_finished_run_is_shown_completely(params: Params, view: MlflowView) -> None:
    fake_runs.train(fake_runs.student(3), epochs=4)
    fake_runs.evaluate(fake_runs.student(3), 91.5)
    assert sync(params) == f"MLflow {params.tracking.uri}, experiment iakd-toy: 1 run, 1 new"
    run = view.only_run()
    record = files.read_json(RESULTS / fake_runs.student(3).path / "run.json", "")
    assert (run.info.run_name, run.info.status) == ("iakd-linear seed 3, T-S", "FINISHED")
    assert run.info.end_time >= run.info.start_time > 0
    assert run.data.params["recipe.lr"] == "0.1"
    assert len(run.data.params["note"]) == 500
    tags = {name.removeprefix("iakd."): value for name, value in run.data.tags.items()}
    assert tags["key"] == record["key"]
    assert [tags[name] for name in ("stage", "pair", "teacher", "student", "method", "seed", "data_sha256")] == [
        *("distill", "T-S", "T", "S", "iakd-linear", "3"),
        "d" * 64,
    ]
    assert tags["path"] == "toy/students/T-S/iakd-linear/seed3"
    assert tags.get("git_commit") == record["git_commit"]
    assert view.values(run, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert view.values(run, "val_top1") == [(2, 52.0), (4, 54.0)]
    assert view.values(run, "test_top1") == [(0, 91.5)]
    assert run.data.metrics["val_nll"] == 0.25
    names = {"run.json", "history.csv", "metrics.json", "evaluation.json", "model.safetensors"}
    assert view.artifacts(run) == names
    folder = Path("mlartifacts", "iakd-toy", run.info.run_id, "artifacts")
    assert run.info.artifact_uri == folder.resolve().as_uri()
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def rows(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows of a database that belong to runs, with the runs' keys instead of their ids."""
    columns = {
        "metrics": "key, value, timestamp, step, is_nan, typeof(value), typeof(step), typeof(is_nan)",
        "latest_metrics": "key, value, timestamp, step, is_nan, typeof(value), typeof(step), typeof(is_nan)",
        "params": "key, value",
        "tags": "key, value",
        "runs": "name, status, start_time, end_time, lifecycle_stage, source_type, source_name",
    }
    with contextlib.closing(sqlite3.connect(database)) as connection:
        keys = dict(connection.execute("SELECT run_uuid, value FROM tags WHERE key = 'iakd.key'"))
        return {
            table: sorted(
                tuple(keys.get(value, value) for value in row)  # a tag has the id of the run's parent
                for row in connection.execute(f"SELECT run_uuid, {names} FROM {table}")
            )
            for table, names in columns.items()
        }


def test_new_runs_are_in_the_database_as_mlflow_itself_writes_them(
    params: Params,
    tree: Path,
    empty_database: Path,
    settings: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where metrics end at different epochs."""
    for seed, epochs in ((0, 5), (1, 1), (2, 300)):
        fake_runs.train(fake_runs.student(seed), epochs=epochs)
    fake_runs.evaluate(fake_runs.student(1), 91.5)
    for run in (fake_runs.teacher(), fake_runs.study(), fake_runs.trial(0)):
        fake_runs.train(run, epochs=3)
    inserted: list[str] = []
    insert = RunStore.insert
    monkeypatch.setattr(
        RunStore, "insert", lambda store, run, *rest: (inserted.append(run.run_id), insert(store, run, *rest))
    )
    sync(params)
    found = rows(tree / "mlflow.db")
    assert len(inserted) == 6 and len(found["metrics"]) > 1200
    shutil.copy(empty_database, tree / "other.db")
    monkeypatch.setattr(RunStore, "can_insert", lambda *_: False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow's client has set
    sync(settings(uri=f"sqlite:///{tree / 'other.db'}"))
    assert rows(tree / "other.db") == found and len(inserted) == 6


@pytest.mark.parametrize(
    ("metrics", "params", "tags"),
    [
        ({"a//b": 1.0}, {}, {}),
        ({"..": 1.0}, {}, {}),
        ({"loss": math.nan}, {}, {}),
        ({"loss": math.inf}, {}, {}),
        ({}, {"x" * 251: "1"}, {}),
        ({}, {}, {"note": "x" * 9000}),
    ],
)
def test_what_mlflow_would_refuse_or_change_is_left_to_it(
    metrics: dict[str, float], params: dict[str, str], tags: dict[str, str]
) -> None:
    tables = MlflowTables("sqlite://")
    assert tables.take([MetricValue("loss", 1.0, 0, 1)], {"recipe.lr": "0.1"}, {"iakd.key": "key"})
    assert not tables.take([MetricValue(name, value, 0, 1) for name, value in metrics.items()], params, tags)


def test_tables_of_another_version_of_mlflow_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MlflowTables.COLUMNS, "SqlMetric", {*MlflowTables.COLUMNS["SqlMetric"], "unit"})
    assert not MlflowTables("sqlite://").take([], {}, {})
    monkeypatch.setitem(MlflowTables.COLUMNS, "SqlNothing", set())
    assert not MlflowTables("sqlite://").take([], {}, {})


def test_nothing_is_sent_twice(params: Params, view: MlflowView, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runs.train(fake_runs.student())
    fake_runs.kill(fake_runs.teacher(), 3)
    sync(params)
    for name in ("create", "upload", "set_status"):
        monkeypatch.setattr(RunStore, name, lambda *_: pytest.fail("nothing should be sent"))
    assert sync(params).endswith("2 runs, 0 new")
    assert view.values(view.runs()["teacher-key"], "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


def test_a_run_that_is_killed_and_resumed_stays_one_run(
    params: Params, view: MlflowView, mirror: Callable[[], None]
) -> None:
    with fake_runs.student().open() as run:
        mirror()
        assert view.only_run().info.status == "RUNNING"
        fake_runs.write_history(run, 6)
        mirror()
        assert view.values(view.only_run(), "loss")[-1] == (6, 1 / 6)
    mirror()
    assert view.only_run().info.status == "KILLED"
    with fake_runs.student().open() as run:
        fake_runs.write_history(run, 4)  # its last checkpoint is older than what was shown
        mirror()
        assert view.only_run().info.status == "RUNNING"
        fake_runs.write_history(run, 7)
        mirror()
        run.finish(fake_runs.history(8), fake_runs.metrics(8))
        mirror()
    mirror()
    assert view.only_run().info.status == "FINISHED"
    for metric in ("loss", "seconds", "p_drawn_0"):
        assert [step for step, _ in view.values(view.only_run(), metric)] == list(range(1, 9))


def test_the_same_across_processes(params: Params, view: MlflowView) -> None:
    fake_runs.kill(fake_runs.student(), 6)
    sync(params)
    with fake_runs.student().open() as run:
        fake_runs.write_history(run, 4)
        sync(params)
    fake_runs.train(fake_runs.student(), epochs=8)
    sync(params)
    assert view.only_run().info.status == "FINISHED"
    assert [step for step, _ in view.values(view.only_run(), "loss")] == list(range(1, 9))


def test_two_processes_that_mirror_in_turns_agree(params: Params, view: MlflowView, mirror: Callable[[], None]) -> None:
    with fake_runs.student().open() as run:
        for epochs in range(1, 7):
            fake_runs.write_history(run, epochs)
            if epochs % 2:
                mirror()
            else:
                sync(params)
        run.finish(fake_runs.history(7), {})
        mirror()
    fake_runs.train(fake_runs.teacher())
    sync(params)
    mirror()
    assert set(view.runs()) == {"teacher-key", fake_runs.student().key}
    assert [step for step, _ in view.values(view.runs()[fake_runs.student().key], "loss")] == list(range(1, 8))


def test_failed_and_interrupted_runs_are_distinguished(params: Params, view: MlflowView) -> None:
    with pytest.raises(RunFailed), fake_runs.student(0).open():
        raise RunFailed("the loss is no longer finite")
    with pytest.raises(KeyboardInterrupt), fake_runs.student(1).open():
        raise KeyboardInterrupt("SIGTERM")
    sync(params)
    assert {run.data.tags["iakd.seed"]: run.info.status for run in view.runs().values()} == {
        "0": "FAILED",
        "1": "KILLED",
    }


def test_another_run_in_the_same_folder_is_another_run(
    params: Params, view: MlflowView, mirror: Callable[[], None]
) -> None:
    with fake_runs.student(key="old").open():
        mirror()
    with fake_runs.student(key="new").open() as run:
        mirror()
        assert {key: run.info.status for key, run in view.runs().items()} == {
            "old": "KILLED",
            "new": "RUNNING",
        }
        run.finish(fake_runs.history(1), {})
        mirror()
    fake_runs.train(fake_runs.student(key="newer"))
    mirror()
    assert {key: run.info.status for key, run in view.runs().items()} == {
        "old": "KILLED",
        "new": "FINISHED",
        "newer": "FINISHED",
    }


def test_a_run_whose_files_vanish_does_not_stay_running(
    params: Params, view: MlflowView, mirror: Callable[[], None]
) -> None:
    with fake_runs.student().open():
        mirror()
        shutil.rmtree(STATE / "toy")
        mirror()
    assert view.only_run().info.status == "KILLED"


def test_an_evaluation_may_be_added_later_and_change(
    params: Params, view: MlflowView, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runs.train(fake_runs.student())
    sync(params)
    assert "test_top1" not in view.only_run().data.metrics
    uploaded: list[str] = []
    upload = RunStore.upload
    monkeypatch.setattr(RunStore, "upload", lambda self, *a: (uploaded.append(a[1].name), upload(self, *a))[1])
    for top1 in (91.5, 90.0):
        time.sleep(0.01)
        fake_runs.evaluate(fake_runs.student(), top1)
        sync(params)
        assert view.only_run().data.metrics["test_top1"] == top1
    fake_runs.train(fake_runs.student(), epochs=6)  # trained again, for more epochs than were shown
    sync(params)
    assert [step for step, _ in view.values(view.only_run(), "loss")] == [1, 2, 3, 4, 5, 6]
    assert uploaded[:2] == ["evaluation.json"] * 2


def test_trials_are_children_of_their_study(params: Params, view: MlflowView, mirror: Callable[[], None]) -> None:
    with fake_runs.study().open() as study:
        with fake_runs.trial(0).open():
            mirror()
            assert view.runs()["study-key"].info.status == "RUNNING"
        fake_runs.train(fake_runs.trial_seed(0, 0), state="complete")
        fake_runs.train(fake_runs.trial(0), state="complete")
        fake_runs.train(fake_runs.trial(1), state="pruned")
        fake_runs.train(fake_runs.trial(2), state="failed")
        mirror()
        folder = study.finish([], {"best": 1})
    files.write_text(folder / "trials.csv", "number\n")
    files.write_text(folder / "best.yaml", "iakd-tuned: {}\n")
    files.write_bytes(folder / "study.journal", b"{}")
    files.write_bytes(folder / "figures" / "history.svg", b"<svg/>")
    mirror()
    runs = view.runs()
    parent = runs["study-key"]
    children = [runs[f"trial-key-{number}"] for number in range(3)]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert runs["trial-key-0-0"].data.tags["mlflow.parentRunId"] == children[0].info.run_id
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED", "FAILED"]
    assert [child.data.tags["iakd.state"] for child in children] == ["complete", "pruned", "failed"]
    assert parent.info.status == "FINISHED"
    assert {"best.yaml", "trials.csv", "study.journal", "figures"} <= view.artifacts(parent)
    assert view.artifacts(parent, "figures") == {"figures/history.svg"}


def test_a_resumed_study_is_running_again(params: Params, view: MlflowView, mirror: Callable[[], None]) -> None:
    fake_runs.train(fake_runs.study())
    mirror()
    with fake_runs.study().open():
        mirror()
        assert view.only_run().info.status == "RUNNING"
        fake_runs.train(fake_runs.trial(0))
        mirror()
    mirror()  # killed: its earlier results remain
    assert view.runs()["study-key"].info.status == "FINISHED"


def test_the_report_is_a_run_with_its_figures(params: Params, view: MlflowView) -> None:
    files.write_text(RESULTS / "toy" / "report" / "report.html", "<html>")
    files.write_bytes(RESULTS / "toy" / "report" / "figures" / "gain.svg", b"<svg/>")
    sync(params)
    run = view.runs()["report:toy"]
    assert (run.info.run_name, run.info.status) == ("report toy", "FINISHED")
    assert view.artifacts(run) == {"report.html", "figures"}
    files.write_bytes(RESULTS / "toy" / "report" / "figures" / "curves.svg", b"<svg/>")
    sync(params)
    assert view.artifacts(view.only_run(), "figures") == {"figures/gain.svg", "figures/curves.svg"}


def test_damaged_files_cost_only_their_own_run(params: Params, caplog: pytest.LogCaptureFixture) -> None:
    path = fake_runs.train(fake_runs.teacher()) / "run.json"
    path.write_text("{")
    fake_runs.train(fake_runs.student())
    with caplog.at_level(logging.WARNING):
        assert sync(params).endswith("1 run, 1 new, 1 skipped because of damaged files")
    assert [record.message for record in caplog.records if str(path) in record.message]


def test_a_process_that_dies_half_way_leaves_no_duplicates(
    params: Params, view: MlflowView, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runs.train(fake_runs.student(0), epochs=4)
    fake_runs.train(fake_runs.student(1), epochs=4)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in ("upload", "log", "set_status"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunStore, step, die)
            sync(params)
    sync(params)
    assert len(view.runs()) == 2
    for run in view.runs().values():
        assert [step for step, _ in view.values(run, "loss")] == [1, 2, 3, 4]
        assert len(view.artifacts(run)) == 4


def test_a_run_that_mlflow_refuses_does_not_hold_up_the_others(
    params: Params, view: MlflowView, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        fake_runs.train(fake_runs.student(seed))
    log = RunStore.log

    def refuse(self: RunStore, known: Any, *rest: Any) -> None:
        if known.tags["iakd.seed"] == "1":
            raise ValueError("no such thing\nand more")
        log(self, known, *rest)

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunFailed, match=r"1 of 3 runs .*seed1: no such thing$"),
    ):
        patch.setattr(RunStore, "log", refuse)
        sync(params)
    assert sync(params).endswith("3 runs, 0 new")
    assert [run.info.status for run in view.runs().values()] == ["FINISHED"] * 3


def test_an_outage_in_the_middle_loses_nothing(
    params: Params, view: MlflowView, mirror: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> None:
        raise RunFailed("the server does not answer")

    def refused(*_: Any) -> None:
        raise ConnectionRefusedError

    with fake_runs.student().open() as run:
        fake_runs.write_history(run, 2)
        mirror()
        fake_runs.write_history(run, 5)
        with monkeypatch.context() as patch, pytest.raises(RunFailed, match="does not answer"):
            patch.setattr(RunStore, "log", refused)
            patch.setattr(MlflowAddress, "check_reachable", down)
            mirror()
        fake_runs.write_history(run, 7)
        mirror()
    assert [step for step, _ in view.values(view.only_run(), "loss")] == list(range(1, 8))


def test_a_request_that_was_repeated_leaves_one_run(params: Params, view: MlflowView) -> None:
    fake_runs.train(fake_runs.student())
    sync(params)
    run = view.only_run()
    view.client.create_run(run.info.experiment_id, tags={"iakd.key": run.data.tags["iakd.key"]})
    sync(params)
    assert view.only_run().info.run_id == run.info.run_id


def test_two_checkouts_with_the_same_results_create_one_run(
    params: Params, view: MlflowView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds nothing in MLflow and creates the run; the one that is kept is the same for both."""
    fake_runs.train(fake_runs.student())
    create = RunStore.create

    def create_after_another(store: RunStore, content: Any) -> Any:
        monkeypatch.setattr(RunStore, "create", create)
        create(store, content)  # complete when its checkout sends the rest, as this one does
        return create(store, content)

    monkeypatch.setattr(RunStore, "create", create_after_another)
    monkeypatch.setattr(MlflowAddress, "database", None)  # others can reach this MLflow, too
    assert sync(params).endswith(("1 run, 0 new", "1 run, 1 new"))
    run = view.only_run()
    assert run.info.status == "FINISHED"
    assert [step for step, _ in view.values(run, "loss")] == [1, 2, 3, 4]
    assert "model.safetensors" in view.artifacts(run)


def test_what_another_checkout_trains_is_left_to_it_until_it_is_finished_here(params: Params, view: MlflowView) -> None:
    with fake_runs.student().open() as run:
        fake_runs.write_history(run, 3)
        sync(params)
        shutil.rmtree(STATE / "tracking")  # as if it were another tree
        fake_runs.write_history(run, 5)
        sync(params)
        assert [step for step, _ in view.values(view.only_run(), "loss")] == [1, 2, 3]
    fake_runs.train(fake_runs.student(), epochs=6)
    sync(params)
    assert view.only_run().info.status == "FINISHED"
    assert [step for step, _ in view.values(view.only_run(), "loss")] == [1, 2, 3, 4, 5, 6]


def test_other_trees_and_data_sets_in_one_experiment_are_left_alone(
    params: Params, settings: Callable[..., Params]
) -> None:
    toy = settings(uri=params.tracking.uri, experiment="shared")
    other = settings("other", uri=params.tracking.uri, experiment="shared")
    with fake_runs.student().open(), fake_runs.student(dataset="other").open():
        sync(toy)
        sync(other)
        shutil.move(STATE / "tracking" / "tree", "tree")  # as if it were another tree
        shutil.move(STATE / "toy", "toy")
        sync(toy)
        assert {run.info.status for run in MlflowView(toy).runs().values()} == {"RUNNING"}
        shutil.move("tree", STATE / "tracking" / "tree")
        sync(other)
        assert {run.info.status for run in MlflowView(toy).runs().values()} == {"RUNNING"}
        sync(toy)
    assert {run.data.tags["iakd.dataset"]: run.info.status for run in MlflowView(toy).runs().values()} == {
        "toy": "KILLED",
        "other": "RUNNING",
    }


def test_the_environment_takes_precedence_over_the_settings(
    params: Params, view: MlflowView, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runs.train(fake_runs.student())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", params.tracking.uri)
    elsewhere = params.model_copy(update={"tracking": params.tracking.model_copy(update={"uri": "sqlite:///no.db"})})
    sync(elsewhere)
    assert view.only_run().info.status == "FINISHED"
    assert not Path("no.db").exists()


def test_a_deleted_experiment_is_left_to_the_user_to_restore(params: Params, view: MlflowView) -> None:
    sync(params)
    mlflow = view.client
    mlflow.delete_experiment(mlflow.get_experiment_by_name("iakd-toy").experiment_id)
    with pytest.raises(UserError, match=r"iakd-toy is deleted; .*restore"):
        sync(params)


def test_runs_of_earlier_settings_are_marked(
    params: Params, view: MlflowView, settings: Callable[..., Params], mirror: Callable[[], None]
) -> None:
    def marks() -> dict[str, str]:
        return {run.data.tags["iakd.path"]: run.data.tags["iakd.settings"] for run in view.runs().values()}

    def train(job: StudentJob) -> None:
        about = {"dataset": "toy", "teacher": job.teacher.network.name, "student": "S", "method": job.label}
        fake_runs.train(Run(job.path, "distill", f"{job.key}", job.settings, job.seed, about, {"data": "d" * 64}))

    first = plan_experiment(params).students
    for job in first:
        train(job)
    mirror()
    assert marks() == {job.path: "current" for job in first}
    recipe = params.distill.recipe.model_copy(update={"epochs": 7})
    longer = params.model_copy(update={"distill": params.distill.model_copy(update={"recipe": recipe})})
    second = [job for job in plan_experiment(longer).students if job.label == "kd"]
    for job in second:
        train(job)
    sync(longer)
    # "kd" was trained again in the same folders; the folders of the other methods hold results of earlier settings
    of_names = {(run.info.run_name, run.data.tags["iakd.settings"]) for run in view.runs().values()}
    assert {name for name, mark in of_names if mark == "current"} == {
        f"kd seed {job.seed}, resnet20w8-S, 7 epochs" for job in second
    }
    assert len(of_names) == len(first) + len(second)
    sync(params)  # back to the first settings
    assert [run.data.tags["iakd.method"] for run in view.runs().values() if run.data.tags["iakd.settings"] == "current"]
    assert {
        run.data.tags["iakd.path"] for run in view.runs().values() if run.data.tags["iakd.settings"] == "current"
    } == {job.path for job in first if job.label != "kd"}


def test_a_study_and_its_trials_are_marked_together(params: Params, view: MlflowView) -> None:
    for run in (fake_runs.study(), fake_runs.trial(0)):
        fake_runs.train(run)
    sync(params)
    assert {run.data.tags["iakd.settings"] for run in view.runs().values()} == {"earlier"}  # not in the settings


def test_the_experiment_is_one_of_model_training_with_views_of_its_own(params: Params, view: MlflowView) -> None:
    fake_runs.train(fake_runs.student())
    sync(params)
    experiment = view.client.get_experiment_by_name("iakd-toy")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    saved = json.loads(experiment.tags["mlflow.sharedViewState.iakd-students"])
    assert isinstance(saved["createdAt"], int)
    assert saved["name"] == "Students by method"
    state = json.loads(zlib.decompress(base64.b64decode(saved["state"].removeprefix("deflate;"))))
    view.client.search_runs([experiment.experiment_id], state["searchFilter"])  # is valid
    columns = set(state["selectedColumns"])
    assert {"tags.`iakd.method`", "tags.`iakd.pair`", "tags.`iakd.seed`", "metrics.`test_top1`"} <= columns
    assert all(len(value) <= 5000 for value in experiment.tags.values())
    view.client.set_experiment_tag(experiment.experiment_id, "mlflow.sharedViewState.iakd-students", "of a user")
    fake_runs.train(fake_runs.teacher())
    sync(params)
    kept = view.client.get_experiment_by_name("iakd-toy").tags
    assert kept["mlflow.sharedViewState.iakd-students"] == "of a user"


def test_a_run_shows_its_data(params: Params, view: MlflowView) -> None:
    fake_runs.manifest()
    fake_runs.train(fake_runs.student())
    sync(params)
    fake_runs.evaluate(fake_runs.student(), 90.0)
    for _ in range(2):
        sync(params)
    inputs = view.only_run().inputs.dataset_inputs
    assert {(found.dataset.name, found.dataset.digest, found.tags[0].value) for found in inputs} == {
        ("toy", "d" * 12, "training"),
        ("toy test", "test" * 3, "testing"),
    }
    assert len(inputs) == 2
    assert json.loads(inputs[0].dataset.profile)["classes"] == 2


def test_a_locked_database_fails_soon_and_loses_nothing(params: Params) -> None:
    fake_runs.train(fake_runs.student())
    sync(params)
    fake_runs.train(fake_runs.teacher())
    database = tracking_address(params).database  # type: ignore[union-attr]
    assert database
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with pytest.raises(RunFailed, match="database is locked"):
        sync(params)
    assert time.monotonic() - began < 10
    blocker.execute("ROLLBACK")
    assert sync(params).endswith("2 runs, 1 new")


def test_a_file_that_is_not_a_database_is_an_error_in_one_line(tree: Path, settings: Callable[..., Params]) -> None:
    Path("mlflow.db").write_text("no database at all" * 100)
    with pytest.raises(RunFailed, match="not a database"):
        sync(settings())


def test_many_settings_and_epochs_fit(params: Params, view: MlflowView) -> None:
    run = fake_runs.student()
    run.params = {f"p{number}": number for number in range(250)}
    with run.open():
        run.finish(fake_runs.history(500), {})
    sync(params)
    assert len(view.only_run().data.params) == 250
    assert [step for step, _ in view.values(view.only_run(), "loss")] == list(range(1, 501))


def test_a_database_that_was_replaced_is_noticed(
    params: Params, empty_database: Path, mirror: Callable[[], None]
) -> None:
    fake_runs.train(fake_runs.student())
    mirror()
    Path("mlflow.db").unlink()
    fake_runs.train(fake_runs.teacher())
    with pytest.raises(DatabaseReplaced):
        mirror()
    shutil.copy(empty_database, "mlflow.db")
    with pytest.raises(DatabaseReplaced):
        mirror()


@pytest.mark.parametrize("name", ["/Shared/x", "../../up", "..", ".", "a\\..\\b", "ä" * 250, "two words", "iakd-x"])
def test_artifacts_stay_below_their_folder_whatever_the_experiment_is_called(tmp_path: Path, name: str) -> None:
    location = MlflowAddress("sqlite:///mlflow.db", name, "digits", str(tmp_path)).artifact_location()
    assert location is not None
    folder = Path(url2pathname(urlsplit(location).path))
    assert folder.parent == tmp_path and folder.resolve() == folder
    folder.mkdir()
    remote = MlflowAddress("sqlite:///mlflow.db", name, "digits", "s3://bucket/below/").artifact_location()
    assert remote == f"s3://bucket/below/{folder.name}"
    assert "/" in name or name in (".", "..") or len(name) > 200 or "\\" in name or folder.name == name


def test_a_database_that_is_no_file_is_said_to_be_none() -> None:
    with pytest.raises(RunFailed, match=r"sqlite:////dev/null: is not a file; set tracking\.uri to sqlite:///FILE"):
        MlflowAddress("sqlite:////dev/null", "e", "d", "a").check_reachable()


def test_passwords_are_not_shown() -> None:
    address = MlflowAddress("postgresql+psycopg://me:secret@db:5432/mlflow", "e", "d", "a")
    assert address.display == "postgresql+psycopg://me:…@db:5432/mlflow"

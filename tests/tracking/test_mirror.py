"""MLflow as a mirror of the files: exactly one run for each, with all that it has, whatever happens."""

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trees

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import RESULTS, STATE
from iakd.tracking.mirror import Mirror, Replaced
from iakd.tracking.place import Place, place_of
from iakd.tracking.scan import scan
from iakd.tracking.store import RunStore
from iakd.tracking.sync import sync


def client(params: Params) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=params.tracking.uri)


def shown(params: Params) -> dict[str, Any]:
    """The experiment's runs by key; more than one with a key is a failure."""
    mlflow = client(params)
    experiment = mlflow.get_experiment_by_name(params.tracking.experiment or f"iakd-{params.dataset.name}")
    runs = mlflow.search_runs([experiment.experiment_id])
    by_key = {run.data.tags["iakd.key"]: run for run in runs}
    assert len(by_key) == len(runs)
    return by_key


def only(params: Params) -> Any:
    (run,) = shown(params).values()
    return run


def values(params: Params, run: Any, metric: str) -> list[tuple[int, float]]:
    history = client(params).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def artifacts(params: Params, run: Any, folder: str | None = None) -> set[str]:
    return {file.path for file in client(params).list_artifacts(run.info.run_id, folder)}


@pytest.fixture
def mirror(params: Params) -> Callable[[], None]:
    """One process's mirroring, as the follower does it again and again."""
    place = place_of(params)
    assert place
    place.folder.mkdir(parents=True)
    inner = Mirror(place)

    def bring() -> None:
        assert inner.bring(scan(place.dataset), patience=1).complete

    return bring


def test_a_finished_run_is_shown_whole(params: Params) -> None:
    trees.complete(trees.student(3), epochs=4)
    trees.evaluated(trees.student(3), 91.5)
    assert sync(params) == f"MLflow {params.tracking.uri}, experiment iakd-toy: 1 runs, 1 new"
    run = only(params)
    record = files.read_json(RESULTS / trees.student(3).path / "run.json", "")
    assert (run.info.run_name, run.info.status) == ("iakd-linear seed 3", "FINISHED")
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
    assert values(params, run, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert values(params, run, "val_top1") == [(2, 52.0), (4, 54.0)]
    assert values(params, run, "test_top1") == [(0, 91.5)]
    assert run.data.metrics["val_nll"] == 0.25
    names = {"run.json", "history.csv", "metrics.json", "evaluation.json", "model.safetensors"}
    assert artifacts(params, run) == names
    folder = Path("mlartifacts", "iakd-toy", run.info.run_id, "artifacts")
    assert run.info.artifact_uri == folder.resolve().as_uri()
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_nothing_is_sent_twice(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.complete(trees.student())
    trees.killed(trees.teacher(), 3)
    sync(params)
    for name in ("create", "upload", "set_status"):
        monkeypatch.setattr(RunStore, name, lambda *_: pytest.fail("there is nothing to do"))
    assert sync(params).endswith("2 runs, 0 new")
    assert values(params, shown(params)["teacher-key"], "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


def test_a_run_that_is_killed_and_resumed_stays_one_run(params: Params, mirror: Callable[[], None]) -> None:
    with trees.student().open() as run:
        mirror()
        assert only(params).info.status == "RUNNING"
        trees.show(run, 6)
        mirror()
        assert values(params, only(params), "loss")[-1] == (6, 1 / 6)
    mirror()
    assert only(params).info.status == "KILLED"
    with trees.student().open() as run:
        trees.show(run, 4)  # its last checkpoint was older than what was shown
        mirror()
        assert only(params).info.status == "RUNNING"
        trees.show(run, 7)
        mirror()
        run.finish(trees.rows(8), trees.metrics(8))
        mirror()
    mirror()
    assert only(params).info.status == "FINISHED"
    for metric in ("loss", "seconds", "p_drawn_0"):
        assert [step for step, _ in values(params, only(params), metric)] == list(range(1, 9))


def test_the_same_across_processes(params: Params) -> None:
    trees.killed(trees.student(), 6)
    sync(params)
    with trees.student().open() as run:
        trees.show(run, 4)
        sync(params)
    trees.complete(trees.student(), epochs=8)
    sync(params)
    assert only(params).info.status == "FINISHED"
    assert [step for step, _ in values(params, only(params), "loss")] == list(range(1, 9))


def test_two_that_mirror_in_turns_agree(params: Params, mirror: Callable[[], None]) -> None:
    with trees.student().open() as run:
        for epochs in range(1, 7):
            trees.show(run, epochs)
            if epochs % 2:
                mirror()
            else:
                sync(params)
        run.finish(trees.rows(7), {})
        mirror()
    trees.complete(trees.teacher())
    sync(params)
    mirror()
    assert set(shown(params)) == {"teacher-key", trees.student().key}
    assert [step for step, _ in values(params, shown(params)[trees.student().key], "loss")] == list(range(1, 8))


def test_failures_are_told_apart(params: Params) -> None:
    with pytest.raises(RunFailed), trees.student(0).open():
        raise RunFailed("the loss is no longer finite")
    with pytest.raises(KeyboardInterrupt), trees.student(1).open():
        raise KeyboardInterrupt("SIGTERM")
    sync(params)
    assert {run.data.tags["iakd.seed"]: run.info.status for run in shown(params).values()} == {
        "0": "FAILED",
        "1": "KILLED",
    }


def test_another_run_in_the_same_folder_is_another_run(params: Params, mirror: Callable[[], None]) -> None:
    with trees.student(key="old").open():
        mirror()
    with trees.student(key="new").open() as run:
        mirror()
        assert {key: run.info.status for key, run in shown(params).items()} == {
            "old": "KILLED",
            "new": "RUNNING",
        }
        run.finish(trees.rows(1), {})
        mirror()
    trees.complete(trees.student(key="newer"))
    mirror()
    assert {key: run.info.status for key, run in shown(params).items()} == {
        "old": "KILLED",
        "new": "FINISHED",
        "newer": "FINISHED",
    }


def test_a_run_whose_files_vanish_does_not_run_for_ever(params: Params, mirror: Callable[[], None]) -> None:
    with trees.student().open():
        mirror()
        shutil.rmtree(STATE / "toy")
        mirror()
    assert only(params).info.status == "KILLED"


def test_an_evaluation_may_come_later_and_change(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.complete(trees.student())
    sync(params)
    assert "test_top1" not in only(params).data.metrics
    uploaded: list[str] = []
    upload = RunStore.upload
    monkeypatch.setattr(RunStore, "upload", lambda self, *a: (uploaded.append(a[1].name), upload(self, *a))[1])
    for top1 in (91.5, 90.0):
        time.sleep(0.01)
        trees.evaluated(trees.student(), top1)
        sync(params)
        assert only(params).data.metrics["test_top1"] == top1
    trees.complete(trees.student(), epochs=6)  # trained once more, and longer than was shown
    sync(params)
    assert [step for step, _ in values(params, only(params), "loss")] == [1, 2, 3, 4, 5, 6]
    assert uploaded[:2] == ["evaluation.json"] * 2


def test_trials_are_children_of_their_study(params: Params, mirror: Callable[[], None]) -> None:
    with trees.study().open() as study:
        with trees.trial(0).open():
            mirror()
            assert shown(params)["study-key"].info.status == "RUNNING"
        trees.complete(trees.trial(0), state="complete")
        trees.complete(trees.trial(1), state="pruned")
        trees.complete(trees.trial(2), state="failed")
        mirror()
        folder = study.finish([], {"best": 1})
    files.write_text(folder / "trials.csv", "number\n")
    files.write_text(folder / "schedule.yaml", "kind: linear\n")
    files.write_bytes(folder / "study.journal", b"{}")
    files.write_bytes(folder / "figures" / "history.svg", b"<svg/>")
    mirror()
    runs = shown(params)
    parent = runs["study-key"]
    children = [runs[f"trial-key-{number}"] for number in range(3)]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED", "FAILED"]
    assert [child.data.tags["iakd.state"] for child in children] == ["complete", "pruned", "failed"]
    assert parent.info.status == "FINISHED"
    assert {"schedule.yaml", "trials.csv", "study.journal", "figures"} <= artifacts(params, parent)
    assert artifacts(params, parent, "figures") == {"figures/history.svg"}


def test_a_study_that_goes_on_is_running_again(params: Params, mirror: Callable[[], None]) -> None:
    trees.complete(trees.study())
    mirror()
    with trees.study().open():
        mirror()
        assert only(params).info.status == "RUNNING"
        trees.complete(trees.trial(0))
        mirror()
    mirror()  # killed: what it had finished before still stands
    assert shown(params)["study-key"].info.status == "FINISHED"


def test_the_report_is_a_run_with_its_figures(params: Params) -> None:
    files.write_text(RESULTS / "toy" / "report" / "report.html", "<html>")
    files.write_bytes(RESULTS / "toy" / "report" / "figures" / "gain.svg", b"<svg/>")
    sync(params)
    run = shown(params)["report:toy"]
    assert (run.info.run_name, run.info.status) == ("report", "FINISHED")
    assert artifacts(params, run) == {"report.html", "figures"}
    files.write_bytes(RESULTS / "toy" / "report" / "figures" / "curves.svg", b"<svg/>")
    sync(params)
    assert artifacts(params, only(params), "figures") == {"figures/gain.svg", "figures/curves.svg"}


def test_damaged_files_cost_only_their_own_run(params: Params, caplog: pytest.LogCaptureFixture) -> None:
    path = trees.complete(trees.teacher()) / "run.json"
    path.write_text("{")
    trees.complete(trees.student())
    with caplog.at_level(logging.WARNING):
        assert sync(params).endswith("1 runs, 1 new, 1 left out because files are damaged")
    assert [record.message for record in caplog.records if str(path) in record.message]


def test_a_process_that_dies_half_way_leaves_nothing_double(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.complete(trees.student(0), epochs=4)
    trees.complete(trees.student(1), epochs=4)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in ("upload", "log", "set_status"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunStore, step, die)
            sync(params)
    sync(params)
    assert len(shown(params)) == 2
    for run in shown(params).values():
        assert [step for step, _ in values(params, run, "loss")] == [1, 2, 3, 4]
        assert len(artifacts(params, run)) == 4


def test_a_run_that_mlflow_refuses_keeps_no_other_back(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        trees.complete(trees.student(seed))
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
    assert [run.info.status for run in shown(params).values()] == ["FINISHED"] * 3


def test_an_outage_in_the_middle_loses_nothing(
    params: Params, mirror: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> None:
        raise RunFailed("the server does not answer")

    def refused(*_: Any) -> None:
        raise ConnectionRefusedError

    with trees.student().open() as run:
        trees.show(run, 2)
        mirror()
        trees.show(run, 5)
        with monkeypatch.context() as patch, pytest.raises(RunFailed, match="does not answer"):
            patch.setattr(RunStore, "log", refused)
            patch.setattr(Place, "check", down)
            mirror()
        trees.show(run, 7)
        mirror()
    assert [step for step, _ in values(params, only(params), "loss")] == list(range(1, 8))


def test_a_request_that_was_repeated_leaves_one_run(params: Params) -> None:
    trees.complete(trees.student())
    sync(params)
    run = only(params)
    client(params).create_run(run.info.experiment_id, tags={"iakd.key": run.data.tags["iakd.key"]})
    sync(params)
    assert only(params).info.run_id == run.info.run_id


def test_other_trees_and_data_sets_in_one_experiment_are_left_alone(
    params: Params, settings: Callable[..., Params]
) -> None:
    toy = settings(uri=params.tracking.uri, experiment="shared")
    other = settings("other", uri=params.tracking.uri, experiment="shared")
    with trees.student().open(), trees.student(dataset="other").open():
        sync(toy)
        sync(other)
        shutil.move(STATE / "tracking" / "tree", "tree")  # as if it were another one's
        shutil.move(STATE / "toy", "toy")
        sync(toy)
        assert {run.info.status for run in shown(toy).values()} == {"RUNNING"}
        shutil.move("tree", STATE / "tracking" / "tree")
        sync(other)
        assert {run.info.status for run in shown(toy).values()} == {"RUNNING"}
        sync(toy)
    assert {run.data.tags["iakd.dataset"]: run.info.status for run in shown(toy).values()} == {
        "toy": "KILLED",
        "other": "RUNNING",
    }


def test_the_environment_goes_before_the_settings(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.complete(trees.student())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", params.tracking.uri)
    elsewhere = params.model_copy(update={"tracking": params.tracking.model_copy(update={"uri": "sqlite:///no.db"})})
    sync(elsewhere)
    assert only(params).info.status == "FINISHED"
    assert not Path("no.db").exists()


def test_a_deleted_experiment_is_the_users_to_restore(params: Params) -> None:
    sync(params)
    mlflow = client(params)
    mlflow.delete_experiment(mlflow.get_experiment_by_name("iakd-toy").experiment_id)
    with pytest.raises(UserError, match=r"iakd-toy is deleted; .*restore"):
        sync(params)


def test_a_locked_database_fails_soon_and_loses_nothing(params: Params) -> None:
    trees.complete(trees.student())
    sync(params)
    trees.complete(trees.teacher())
    database = place_of(params).database  # type: ignore[union-attr]
    assert database
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with pytest.raises(RunFailed, match="database is locked"):
        sync(params)
    assert time.monotonic() - began < 10
    blocker.execute("ROLLBACK")
    assert sync(params).endswith("2 runs, 1 new")


def test_a_file_that_is_no_database_is_said_so(tree: Path, settings: Callable[..., Params]) -> None:
    Path("mlflow.db").write_text("no database at all" * 100)
    with pytest.raises(RunFailed, match="not a database"):
        sync(settings())


def test_many_settings_and_epochs_fit(params: Params) -> None:
    run = trees.student()
    run.params = {f"p{number}": number for number in range(250)}
    with run.open():
        run.finish(trees.rows(500), {})
    sync(params)
    assert len(only(params).data.params) == 250
    assert [step for step, _ in values(params, only(params), "loss")] == list(range(1, 501))


def test_a_database_that_was_replaced_is_noticed(params: Params, migrated: Path, mirror: Callable[[], None]) -> None:
    trees.complete(trees.student())
    mirror()
    Path("mlflow.db").unlink()
    trees.complete(trees.teacher())
    with pytest.raises(Replaced):
        mirror()
    shutil.copy(migrated, "mlflow.db")
    with pytest.raises(Replaced):
        mirror()


def test_passwords_are_not_shown() -> None:
    place = Place("postgresql+psycopg://me:secret@db:5432/mlflow", "e", "d", "a")
    assert place.shown == "postgresql+psycopg://me:…@db:5432/mlflow"

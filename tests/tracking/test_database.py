"""MLflow's database: made whole or not at all, mended if it is half-made, and one line for what cannot be mended."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import fake_runs
import pytest
import yaml
from mlflow_view import MlflowView

from iakd.config import Params
from iakd.errors import RunFailed
from iakd.tracking import database
from iakd.tracking.address import tracking_address
from iakd.tracking.database import prepare_database
from iakd.tracking.mirror import sync


@pytest.fixture
def local(tree: Path, settings: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> Params:
    """Settings with a database that does not exist yet, by absolute path: MLflow opens each path once per process."""
    monkeypatch.setattr(database, "STILL", 0.2)
    return settings(uri=f"sqlite:///{tree / 'mlflow.db'}")


def half_made(path: Path, of: Path) -> None:
    """Leave what a process leaves that is killed while MLflow makes a database: here, a table of a later step."""
    shutil.copy(of, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM experiments")
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # the first step
        connection.commit()


def test_a_database_is_not_there_before_it_is_complete(tree: Path, settings: Callable[..., Params]) -> None:
    fake_runs.train(fake_runs.student())
    Path("params.yaml").write_text(yaml.safe_dump(settings().model_dump(mode="json", exclude_unset=True)))
    process = subprocess.Popen([sys.executable, "-m", "iakd", "track", "sync"], stderr=subprocess.DEVNULL)
    try:
        while not (made := [path for path in tree.glob(".mlflow.db.*") if path.stat().st_size]):
            assert process.poll() is None
            assert not Path("mlflow.db").exists()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert made and not Path("mlflow.db").exists()
    uri = f"sqlite:///{tree / 'mlflow.db'}"
    assert sync(settings(uri=uri)).endswith("1 run, 1 new")
    assert MlflowView(settings(uri=uri)).only_run().info.status == "FINISHED"
    assert not list(tree.glob(".mlflow.db*"))


def test_a_half_made_database_is_mended(
    local: Params, empty_database: Path, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half_made(tree / "mlflow.db", empty_database)
    fake_runs.train(fake_runs.student())
    assert sync(local).endswith("1 run, 1 new")
    assert MlflowView(local).only_run().info.status == "FINISHED"
    assert [r.message for r in caplog.records if "left half-made by a process that was killed" in r.message]
    assert (tree / "mlflow.db.half-made").exists()


def test_an_empty_file_is_filled(local: Params, tree: Path) -> None:
    (tree / "mlflow.db").touch()
    fake_runs.train(fake_runs.student())
    assert sync(local).endswith("1 run, 1 new")


def test_a_database_that_holds_something_is_never_replaced(local: Params, empty_database: Path, tree: Path) -> None:
    half_made(tree / "mlflow.db", empty_database)
    with closing(sqlite3.connect(tree / "mlflow.db")) as connection:
        connection.execute("INSERT INTO registered_models (name, workspace) VALUES ('of a user', 'default')")
        connection.commit()
    fake_runs.train(fake_runs.student())
    with pytest.raises(RunFailed) as failure:
        sync(local)
    assert str(failure.value).startswith(f"MLflow {local.tracking.uri}: ")
    assert "\n" not in str(failure.value)
    with closing(sqlite3.connect(tree / "mlflow.db")) as connection:
        assert connection.execute("SELECT name FROM registered_models").fetchall() == [("of a user",)]


def test_a_database_of_another_program_is_left_alone(local: Params, tree: Path) -> None:
    with closing(sqlite3.connect(tree / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
        connection.commit()
    before = (tree / "mlflow.db").read_bytes()
    with pytest.raises(
        RunFailed, match=r"mlflow\.db: a database of another program; set tracking\.uri to another file$"
    ):
        sync(local)
    assert (tree / "mlflow.db").read_bytes() == before


def sqlite_tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


@pytest.mark.parametrize("damage", ["text", "cut", "overwritten"])
def test_a_damaged_file_is_one_line(
    local: Params, empty_database: Path, tree: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(empty_database.read_bytes())
    match damage:
        case "text":
            content = bytearray(b"no database at all" * 100)
        case "cut":
            del content[len(content) // 3 :]
        case "overwritten":
            content[4096 : len(content) // 2] = b"\xa5" * (len(content) // 2 - 4096)
    (tree / "mlflow.db").write_bytes(content)
    fake_runs.train(fake_runs.student())
    with pytest.raises(RunFailed) as failure:
        sync(local)
    assert str(failure.value).startswith(f"MLflow {local.tracking.uri}: ")
    assert "\n" not in str(failure.value)
    assert "Traceback" not in capfd.readouterr().err
    assert (tree / "mlflow.db").read_bytes() == content


def test_a_read_only_database_is_one_line(local: Params, empty_database: Path, tree: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anything")
    shutil.copy(empty_database, tree / "mlflow.db")
    (tree / "mlflow.db").chmod(0o444)
    fake_runs.train(fake_runs.student())
    with pytest.raises(RunFailed, match=r"readonly database$"):
        sync(local)


def test_the_pages_open_on_a_database_that_is_complete(local: Params, tree: Path) -> None:
    address = tracking_address(local)
    assert address
    prepare_database(address)
    assert {"alembic_version", "runs"} <= sqlite_tables(tree / "mlflow.db")
    stamp = (tree / "mlflow.db").stat().st_mtime_ns
    prepare_database(address)
    assert (tree / "mlflow.db").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("copied", [True, False])
def test_artifacts_are_found_where_a_checkout_was_moved_or_copied_to(
    tree: Path, settings: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """MLflow keeps absolute addresses: the copy must neither show nor change the files of the original."""
    fake_runs.train(fake_runs.student())
    assert sync(settings(uri=f"sqlite:///{tree / 'mlflow.db'}")).endswith("1 run, 1 new")
    elsewhere = tree.with_name(f"{tree.name} else where")
    (shutil.copytree if copied else shutil.move)(tree, elsewhere)
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # mlflow has set it
    moved = settings(uri=f"sqlite:///{elsewhere / 'mlflow.db'}")
    fake_runs.train(fake_runs.student(seed=4))
    assert sync(moved).endswith("2 runs, 1 new")
    view = MlflowView(moved)
    for run in view.runs().values():
        folder = elsewhere / "mlartifacts" / "iakd-toy" / run.info.run_id / "artifacts"
        assert run.info.artifact_uri == folder.as_uri()
        assert "model.safetensors" in view.artifacts(run)
    assert len(list(tree.glob("mlartifacts/iakd-toy/*"))) == copied

"""MLflow's own database: making an SQLite one, opening any, and inserting all of a new run at once.

mlflow, which takes seconds to import, is imported only when it is used.
"""

import contextlib
import glob
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from iakd import files
from iakd.errors import RunFailed
from iakd.tracking.address import PORTS, MlflowAddress
from iakd.tracking.content import MetricValue

ENVIRONMENT = {  # defaults: what the user has set takes precedence
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repetition whose first answer was lost makes a second run
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # of a server that answers, but has much to do
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PGCONNECT_TIMEOUT": "3",
}
STILL = 5.0  # seconds without a change of a half-made database, after which nobody is making it any more
CONTENT = ("experiments", "runs", "registered_models", "trace_info")  # tables that show that a database is in use
OPENING_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates the database
ARTIFACTS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
log = logging.getLogger(__name__)


def set_environment() -> None:
    """Set what MLflow reads when it is imported, except what the user has set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def prepare_database(address: MlflowAddress) -> None:
    """Make the SQLite database if it does not exist, so that whoever opens it finds it complete.

    Raises RunFailed with one line if that is impossible.
    """
    if address.database is None:
        return
    address.check_reachable()
    import sqlite3

    try:
        complete = address.database.exists() and _rows(address.database)
    except sqlite3.Error as error:
        raise RunFailed(f"MLflow {address.display}: {first_line(error)}") from None
    if not complete:
        set_environment()
        with one_line_errors(address), opening(address.opening_lock):
            make_database(address)


def make_database(address: MlflowAddress) -> None:
    """Make the SQLite database beside its place, and rename it when it is complete.

    MLflow makes one in many steps, and cannot open what is left if it is killed in between. A half-made one, which an
    earlier version or `mlflow server` can have left, holds nothing yet, not even the default experiment; it is moved
    aside before MLflow has opened it, since MLflow never closes a database.
    """
    database = address.database
    if database is None:
        return
    if database.exists() and database.stat().st_size:
        rows = _rows(database)
        if rows is None:
            raise RunFailed(
                f"MLflow {address.display}: a database of another program; set tracking.uri to another file"
            )
        if rows or not _left_alone(database):
            return
        aside = database.with_name(f"{database.name}.half-made")
        log.warning("%s was left half-made by a process that was killed: renamed to %s, made again", database, aside)
        database.replace(aside)
    for left in database.parent.glob(f".{glob.escape(database.name)}.????????-journal"):  # of a killed process
        left.unlink(missing_ok=True)
    from mlflow import MlflowClient

    with files.atomic_path(database) as temporary:
        MlflowClient(tracking_uri=f"sqlite:///{temporary.resolve()}").search_experiments(max_results=1)


def _rows(database: Path) -> bool | None:
    """Whether an MLflow database holds anything; None if an SQLite file is not one. Raises sqlite3.Error."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not tables.intersection(("experiments", "alembic_version")):
            return None
        used = sorted(tables.intersection(CONTENT))
        return any(connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in used)


def _left_alone(database: Path) -> bool:
    """Whether a file has not changed for some seconds, so that no other program is making the database any more."""
    before = database.stat().st_mtime_ns
    time.sleep(max(0.0, STILL - (time.time() - before / 1e9)))
    return database.stat().st_mtime_ns == before


def find_moved_artifacts(address: MlflowAddress) -> None:
    """Have MLflow look for artifacts in this working directory where they have come with a database that is in it, too.

    MLflow stores absolute addresses, so a folder that was moved or copied would show, or write to, the files of the
    first one.
    """
    import sqlite3

    database, here = address.database, address.artifact_location()
    if database is None or here is None or Path(address.artifacts).is_absolute() or "://" in address.artifacts:
        return
    if database.resolve().parent != Path.cwd() or not Path(unquote(urlsplit(here).path)).is_dir():
        return
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        there = (connection.execute(query, [address.experiment]).fetchone() or [None])[0]
        relative = here.removeprefix(Path.cwd().as_uri())
        if there is None or there == here or not there.endswith(relative):
            return
        for table, column in ARTIFACTS:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",
                [here, len(there) + 1, len(there) + 1, f"{there}/"],
            )
    log.info("MLflow %s: artifacts are looked for in %s, no longer in %s", address.display, here, there)


def connect(address: MlflowAddress) -> None:
    """Connect to a database once: MLflow itself would retry for minutes, even with a wrong password."""
    if address.is_server or address.database or not address.uri.startswith(tuple(PORTS)):
        return
    from sqlalchemy import create_engine, exc

    try:
        engine = create_engine(address.uri)
        engine.connect().close()
        engine.dispose()
    except (exc.SQLAlchemyError, ImportError) as error:
        raise RunFailed(f"MLflow {address.display}: {first_line(error)}") from None


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Let one process at a time create, migrate and check a database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = files.try_lock(path, patience=OPENING_TIMEOUT)
    if file is None:
        raise RunFailed(f"{path}: another process has been creating the database for {OPENING_TIMEOUT:.0f} s")
    with file:
        yield


@contextlib.contextmanager
def one_line_errors(address: MlflowAddress) -> Iterator[None]:
    """Raise RunFailed with one line for what MLflow, its database and the file system raise."""
    import sqlite3

    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        raise RunFailed(f"MLflow {address.display}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error, cut to 300 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


class MlflowTables:
    """MLflow's tables of runs in a database, for all that is known of a new run at once.

    MLflow's client makes several objects of each metric, and ten transactions of a run, each of which waits for the
    disk. If the tables are not as expected, in another version of MLflow, this takes nothing.
    """

    COLUMNS: ClassVar = {  # of tables into which rows are inserted; of SqlRun, a row is changed
        "SqlMetric": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
        "SqlLatestMetric": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
        "SqlParam": {"key", "value", "run_uuid"},
        "SqlTag": {"key", "value", "run_uuid"},
        "SqlRun": {"run_uuid", "status", "end_time"},
    }
    NAME = re.compile(r"[\w\-][\w\-. ]{,199}")  # a part of what MLflow accepts
    LONGEST_TAG = 4000

    def __init__(self, uri: str) -> None:
        from mlflow.store.tracking.dbmodels import models
        from sqlalchemy import create_engine

        found = {name: getattr(models, name, None) for name in self.COLUMNS}
        self._tables = {name: model.__table__ for name, model in found.items() if model is not None}
        columns = {name: {column.name for column in table.columns} for name, table in self._tables.items()}
        columns["SqlRun"] = columns.get("SqlRun", set()) & self.COLUMNS["SqlRun"]
        self._engine = create_engine(uri) if columns == self.COLUMNS else None

    def take(self, metrics: list[MetricValue], params: dict[str, str], tags: dict[str, str]) -> bool:
        """Whether nothing of it would be refused or changed by MLflow."""
        names = {*params, *tags, *(metric.name for metric in metrics)}
        return (
            self._engine is not None
            and all(self.NAME.fullmatch(name) for name in names)
            and all(len(value) <= self.LONGEST_TAG for value in tags.values())
            and all(math.isfinite(metric.value) for metric in metrics)
        )

    def insert(
        self,
        run_id: str,
        metrics: list[MetricValue],
        params: dict[str, str],
        tags: dict[str, str],
        about: dict[str, Any],
    ) -> None:
        """Insert them, as of a run that has none of these, and change the columns `about` of the run itself."""
        latest: dict[str, MetricValue] = {}
        for metric in metrics:
            known = latest.get(metric.name)
            if known is None or _order(metric) > _order(known):
                latest[metric.name] = metric
        rows = {
            "SqlMetric": [_row(metric) for metric in dict.fromkeys(metrics)],
            "SqlLatestMetric": [_row(metric) for metric in latest.values()],
            "SqlParam": [{"key": name, "value": value} for name, value in params.items()],
            "SqlTag": [{"key": name, "value": value} for name, value in tags.items()],
        }
        assert self._engine is not None
        with self._engine.begin() as connection:
            for name, content in rows.items():
                if content:
                    connection.execute(self._tables[name].insert(), [{**row, "run_uuid": run_id} for row in content])
            if about:
                runs = self._tables["SqlRun"]
                connection.execute(runs.update().where(runs.c.run_uuid == run_id), about)


def _order(metric: MetricValue) -> tuple[int, int, float]:
    """What MLflow compares to find the latest value of a metric."""
    return metric.step, metric.timestamp, metric.value


def _row(metric: MetricValue) -> dict[str, Any]:
    about = {"key": metric.name, "value": metric.value, "timestamp": metric.timestamp, "step": metric.step}
    return {**about, "is_nan": False}

"""Step 5 of mirroring: MLflow through its client. It imports mlflow, which takes seconds, only when it is used.

`RunStore` holds the runs of one experiment (and `models.ModelStore` its models); `download_weights` reads the model
registry; `prepare_database` makes an SQLite database.
"""

import contextlib
import functools
import gc
import glob
import itertools
import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed, UserError
from iakd.tracking.address import PORTS, TRACKING_STATE, MlflowAddress, mlflow_address
from iakd.tracking.content import FINISHED, RUNNING, DataSet, MetricValue, RunContent
from iakd.tracking.views import view_tags

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
MAX_METRICS, MAX_PARAMS = 800, 100  # per request; MLflow accepts 100 parameters, 100 tags and 1000 items in all
PAGE_SIZE = 1000
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not for chat
STILL = 5.0  # seconds without a change of a half-made database, after which nobody is making it any more
CONTENT = ("experiments", "runs", "registered_models", "trace_info")  # tables that show that a database is in use
OPENING_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates the database
KEY, TREE, FILES, PARENT = "iakd.key", "iakd.tree", "iakd.files", "mlflow.parentRunId"
SETTINGS, CURRENT, EARLIER = "iakd.settings", "current", "earlier"  # a tag of runs and models, and its values
log = logging.getLogger(__name__)
WEIGHT_FILES = (".safetensors", ".pt2", ".pth", ".pt", ".bin", ".ckpt")  # in order of preference


@dataclass
class MlflowRun:
    """A run as MLflow has it."""

    run_id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    last_epoch: int | None = None  # the last one in MLflow; None: not asked yet
    data: set[tuple[str, str]] = field(default_factory=set)  # names and digests
    artifacts: str = ""  # where its artifacts go
    empty: bool = False  # just created by this process: MLflow has no metric or parameter of it

    @property
    def uploaded(self) -> dict[str, str]:
        """Digests of the files that were mirrored completely, by name."""
        try:
            value = json.loads(self.tags.get(FILES, "{}"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def is_of_others(self, tree: str) -> bool:
        """Whether another results tree than this one is showing it as running, or has finished it."""
        return self.tags.get(TREE) != tree and self.status in (RUNNING, FINISHED)


class RunStore:
    """The runs of one MLflow experiment, which is created if it does not exist yet.

    Raises RunFailed with one line if MLflow cannot be used, UserError if the experiment was deleted.
    """

    def __init__(self, address: MlflowAddress) -> None:
        self.address = address
        address.check_reachable()
        _set_environment()
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns at each attempt
        _connect(address)
        import mlflow

        with _one_line_errors(address):
            mlflow.set_tracking_uri(address.uri)
            with _opening(address.opening_lock):
                _make_database(address)
                _find_moved_artifacts(address)
                self.client = mlflow.MlflowClient(tracking_uri=address.uri)
                self.experiment_id = self._experiment()
                self.tree = _tree_id()
        self.database_id = address.database_id
        self._tables = None if address.is_server else MlflowTables(address.uri)
        gc.freeze()  # keeps the garbage collector from scanning all of mlflow again and again

    def _experiment(self) -> str:
        name = self.address.experiment
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            from mlflow.exceptions import MlflowException

            location = self.address.artifact_location()
            created = round(1000 * time.time())
            tags = {**EXPERIMENT_TAGS, **view_tags(created)}
            try:
                return str(self.client.create_experiment(name, location, tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self.client.get_experiment_by_name(name)  # another checkout was faster
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"MLflow {self.address.display}: experiment {name} is deleted; restore it (mlflow experiments "
                f"restore --experiment-id {experiment.experiment_id}) or change tracking.experiment"
            )
        for tag, value in {**EXPERIMENT_TAGS, **view_tags(experiment.creation_time or 0)}.items():
            if tag not in experiment.tags:  # of an older version; what the user has changed stays
                self.client.set_experiment_tag(experiment.experiment_id, tag, value)
        return str(experiment.experiment_id)

    def load(self) -> dict[str, MlflowRun]:
        """Return all runs of the experiment that carry a key, by key; of several with the same key, the first.

        Later duplicates are deleted, as far as this user may. They come from requests whose answers were lost, and from
        checkouts with the same results that were mirrored at the same moment.
        """
        from mlflow.exceptions import MlflowException

        runs: dict[str, MlflowRun] = {}
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.`{KEY}` != ''", 1, PAGE_SIZE, ["attributes.start_time ASC"], token
            )
            for run in page:
                key = run.data.tags[KEY]
                if key in runs:
                    with contextlib.suppress(MlflowException):
                        self.client.delete_run(run.info.run_id)
                else:
                    runs[key] = MlflowRun(
                        run.info.run_id,
                        run.info.status,
                        dict(run.data.tags),
                        set(run.data.params),
                        data={(data.dataset.name, data.dataset.digest) for data in run.inputs.dataset_inputs},
                        artifacts=str(run.info.artifact_uri),
                    )
            token = page.token
            if not token:
                return runs

    def create(self, content: RunContent) -> MlflowRun:
        """Create a run, without metrics yet."""
        tags = {**content.tags, TREE: self.tree}
        run = self.client.create_run(self.experiment_id, content.started, tags, content.name)
        return MlflowRun(run.info.run_id, RUNNING, tags, last_epoch=0, artifacts=str(run.info.artifact_uri), empty=True)

    def can_insert(
        self, run: MlflowRun, metrics: list[MetricValue], params: dict[str, str], tags: dict[str, str]
    ) -> bool:
        """Whether `insert` can log all this: of an empty run in a database, with values that need no checks."""
        return self._tables is not None and run.empty and self._tables.take(metrics, params, tags)

    def insert(
        self,
        run: MlflowRun,
        metrics: list[MetricValue],
        params: dict[str, str],
        tags: dict[str, str],
        status: str | None,
        ended: int | None,
    ) -> None:
        """Log all of an empty run in one transaction, and its status if there is one (`log`, `set_status`)."""
        assert self._tables is not None
        changed = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        now = round(1000 * time.time())
        about = {"status": status, "end_time": None if status == RUNNING else ended or now} if status else {}
        self._tables.insert(run.run_id, metrics, params, changed, about)
        run.params |= set(params)
        run.tags |= changed
        run.status = status or run.status
        run.empty = False

    def log(self, run: MlflowRun, metrics: list[MetricValue], params: dict[str, str], tags: dict[str, str]) -> None:
        """Log what is new. The metrics of one step share a request, so that no step is ever incomplete."""
        run.empty = False
        from mlflow.entities import Metric, Param, RunTag

        names = [name for name in params if name not in run.params]
        changed = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        name_batches = [names[position : position + MAX_PARAMS] for position in range(0, len(names), MAX_PARAMS)]
        new_tags = [RunTag(name, value) for name, value in changed.items()]
        if new_tags and not name_batches:
            name_batches = [[]]
        for metric_batch, name_batch in itertools.zip_longest(_metric_batches(metrics), name_batches):
            self.client.log_batch(
                run.run_id,
                metrics=[Metric(m.name, m.value, m.timestamp, m.step) for m in metric_batch or []],
                params=[Param(name, params[name]) for name in name_batch or []],
                tags=new_tags,
            )
            new_tags = []
        run.params |= set(names)
        run.tags |= changed

    def log_data(self, run: MlflowRun, data: list[DataSet]) -> None:
        """Log the data sets that MLflow does not have yet as inputs of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        missing = [dataset for dataset in data if (dataset.name, dataset.digest) not in run.data]
        inputs = [
            DatasetInput(
                Dataset(
                    dataset.name,
                    dataset.digest,
                    "local",
                    json.dumps({"uri": dataset.source}),
                    json.dumps(dataset.schema) if dataset.schema else None,
                    json.dumps(dataset.profile) if dataset.profile else None,
                ),
                [InputTag("mlflow.data.context", dataset.context)],
            )
            for dataset in missing
        ]
        if inputs:
            self.client.log_inputs(run.run_id, inputs)
        run.data |= {(dataset.name, dataset.digest) for dataset in missing}

    def is_deleted(self, run: MlflowRun) -> bool:
        """Whether a run has been deleted since it was loaded."""
        return bool(self.client.get_run(run.run_id).info.lifecycle_stage == "deleted")

    def last_step(self, run: MlflowRun, metric: str) -> int:
        """Return the highest step of a metric; 0 if it was never logged."""
        history: list[Any] = self.client.get_metric_history(run.run_id, metric)
        return max((value.step for value in history), default=0)

    def upload(self, run: MlflowRun, path: Path, folder: str | None = None) -> None:
        """Upload a file, or the contents of a folder, as artifacts."""
        store = _artifact_store(run.artifacts)
        if path.is_dir():
            store.log_artifacts(str(path), folder)
        else:
            store.log_artifact(str(path), folder)

    def set_status(self, run: MlflowRun, status: str, ended: int | None = None) -> None:
        """Change a run's status; `ended` in ms since 1970."""
        if status == RUNNING:
            self.client.update_run(run.run_id, status=status)
        else:
            self.client.set_terminated(run.run_id, status, ended)
        run.status = status


@functools.lru_cache(maxsize=1)
def _artifact_store(uri: str) -> Any:
    """Return where a run's artifacts go; MLflow's client would ask for the run again."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri)


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


def download_weights(uri: str, params: Params, folder: Path) -> Path:
    """Download a registered model, `models:/NAME/VERSION` or `models:/NAME@ALIAS`, and return its file of weights.

    The URI may name a file inside the model, `models:/NAME/1/data/x.pth`. Raises UserError if the model does not
    exist, or has no file of weights or more than one; RunFailed if MLflow does not answer.
    """
    address = mlflow_address(params)
    if address.database and not address.database.exists():
        raise UserError(f"{uri}: no model registry, {address.database} does not exist; set MLFLOW_TRACKING_URI")
    address.check_reachable()
    _set_environment()
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    mlflow.set_tracking_uri(address.uri)
    try:
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise UserError(f"{uri}: error from MLflow {address.display}: {first_line(error)}") from None
    return model if model.is_file() else _weight_file(uri, model)


def _weight_file(uri: str, folder: Path) -> Path:
    """Return the only file of weights of the preferred kind."""
    for suffix in WEIGHT_FILES:
        found = sorted(folder.rglob(f"*{suffix}"))
        if len(found) > 1:
            names = ", ".join(str(file.relative_to(folder)) for file in found)
            raise UserError(f"{uri} has several files: {names}; name one, as in {uri}/{names.split(', ')[0]}")
        if found:
            return found[0]
    raise UserError(f"{uri} has no file of weights ({', '.join(WEIGHT_FILES)}); see docs/networks.md on logging one")


def _set_environment() -> None:
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
        _set_environment()
        with _one_line_errors(address), _opening(address.opening_lock):
            _make_database(address)


def _make_database(address: MlflowAddress) -> None:
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


ARTIFACTS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


def _find_moved_artifacts(address: MlflowAddress) -> None:
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


def _left_alone(database: Path) -> bool:
    """Whether a file has not changed for some seconds, so that no other program is making the database any more."""
    before = database.stat().st_mtime_ns
    time.sleep(max(0.0, STILL - (time.time() - before / 1e9)))
    return database.stat().st_mtime_ns == before


@contextlib.contextmanager
def _one_line_errors(address: MlflowAddress) -> Iterator[None]:
    """Raise RunFailed with one line for what MLflow, its database and the file system raise."""
    import sqlite3

    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        raise RunFailed(f"MLflow {address.display}: {first_line(error)}") from None


def _connect(address: MlflowAddress) -> None:
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


def _metric_batches(metrics: list[MetricValue]) -> Iterator[list[MetricValue]]:
    """Yield consecutive metrics in batches of at most MAX_METRICS, split between steps if possible."""
    batch: list[MetricValue] = []
    step: list[MetricValue] = []
    for position, metric in enumerate(metrics):
        step.append(metric)
        last = position + 1 == len(metrics) or metrics[position + 1].step != metric.step
        if last or len(step) == MAX_METRICS:
            if len(batch) + len(step) > MAX_METRICS:
                yield batch
                batch = []
            batch += step
            step = []
    if batch:
        yield batch


@contextlib.contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Let one process at a time create, migrate and check a database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = files.try_lock(path, patience=OPENING_TIMEOUT)
    if file is None:
        raise RunFailed(f"{path}: another process has been creating the database for {OPENING_TIMEOUT:.0f} s")
    with file:
        yield


def _tree_id() -> str:
    """Return an id of this results tree, so that it never ends another tree's runs in a shared experiment."""
    path = TRACKING_STATE / "tree"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex)
    return path.read_text()


def first_line(error: BaseException) -> str:
    """Return the first line of an error, cut to 300 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]

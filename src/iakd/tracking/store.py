"""MLflow itself, through its client: the only module that imports it, and only when a store is opened."""

import contextlib
import fcntl
import gc
import itertools
import json
import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iakd import files
from iakd.errors import RunFailed, UserError
from iakd.tracking.content import RUNNING, Content, Point
from iakd.tracking.place import FOLDER, PORTS, Place

ENVIRONMENT = {  # what the user has set goes first
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PGCONNECT_TIMEOUT": "3",
}
METRICS, PARAMS = 800, 100  # per request; MLflow takes 100 parameters, 100 tags and 1000 things in all
PAGE = 1000
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not for chat models
OPENING = 120.0  # seconds to wait for another process that creates or migrates the database
KEY, TREE, FILES, PARENT = "iakd.key", "iakd.tree", "iakd.files", "mlflow.parentRunId"


@dataclass
class Known:
    """A run as MLflow has it."""

    run_id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    step: int | None = None  # last epoch in MLflow; None: not asked yet

    @property
    def files(self) -> dict[str, str]:
        """Which content of which file was mirrored, wholly."""
        try:
            value = json.loads(self.tags.get(FILES, "{}"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class RunStore:
    """One experiment of one MLflow; created where it does not exist yet.

    Raises RunFailed with one line where MLflow cannot be used, UserError where the experiment was deleted.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        place.check()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line for each attempt
        _connect(place)
        import mlflow
        from mlflow.exceptions import MlflowException

        try:
            mlflow.set_tracking_uri(place.uri)
            with _opening(place.opening):
                self.client = mlflow.MlflowClient(tracking_uri=place.uri)
                self.experiment_id = self._experiment()
                self.tree = _tree()
        except (UserError, RunFailed):
            raise
        except (MlflowException, OSError, ImportError) as error:
            raise RunFailed(f"MLflow {place.shown}: {first_line(error)}") from None
        self.identity = place.identity
        gc.freeze()  # what mlflow consists of need not be looked through for garbage with every run

    def _experiment(self) -> str:
        name = self.place.experiment
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return str(self.client.create_experiment(name, self.place.artifact_location(), KIND))
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"MLflow {self.place.shown}: experiment {name} is deleted; bring it back (mlflow experiments "
                f"restore --experiment-id {experiment.experiment_id}) or set another tracking.experiment"
            )
        return str(experiment.experiment_id)

    def load(self) -> dict[str, Known]:
        """All runs of the experiment that carry a key. Of several with one key the first is kept."""
        known: dict[str, Known] = {}
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.`{KEY}` != ''", 1, PAGE, ["attributes.start_time ASC"], token
            )
            for run in page:
                key = run.data.tags[KEY]
                if key in known:  # a request whose answer was lost and that was sent again
                    self.client.delete_run(run.info.run_id)
                else:
                    known[key] = Known(run.info.run_id, run.info.status, dict(run.data.tags), set(run.data.params))
            token = page.token
            if not token:
                return known

    def create(self, content: Content) -> Known:
        """A new run, without its metrics yet."""
        tags = {**content.tags, TREE: self.tree}
        run = self.client.create_run(self.experiment_id, content.started, tags, content.name)
        return Known(run.info.run_id, RUNNING, tags, step=0)

    def log(self, known: Known, points: list[Point], params: dict[str, str], tags: dict[str, str]) -> None:
        """Log what is new; rows of one step go into one request, so that a step is there or not."""
        from mlflow.entities import Metric, Param, RunTag

        names = [name for name in params if name not in known.params]
        changed = {name: value for name, value in tags.items() if known.tags.get(name) != value}
        parts = [names[position : position + PARAMS] for position in range(0, len(names), PARAMS)]
        labels = [RunTag(name, value) for name, value in changed.items()]
        for batch, part in itertools.zip_longest(_batches(points), parts or [[]] if labels else parts):
            self.client.log_batch(
                known.run_id,
                metrics=[Metric(p.name, p.value, p.timestamp, p.step) for p in batch or []],
                params=[Param(name, params[name]) for name in part or []],
                tags=labels,
            )
            labels = []
        known.params |= set(names)
        known.tags |= changed

    def last_step(self, known: Known, metric: str) -> int:
        """The highest step of a metric; 0 where there is none."""
        history: list[Any] = self.client.get_metric_history(known.run_id, metric)
        return max((value.step for value in history), default=0)

    def upload(self, known: Known, path: Path, folder: str | None = None) -> None:
        """Store a file, or what is in a folder, as artifact."""
        if path.is_dir():
            self.client.log_artifacts(known.run_id, str(path), folder)
        else:
            self.client.log_artifact(known.run_id, str(path), folder)

    def set_status(self, known: Known, status: str, ended: int | None = None) -> None:
        """Change a run's status; `ended` in ms since 1970."""
        if status == RUNNING:
            self.client.update_run(known.run_id, status=status)
        else:
            self.client.set_terminated(known.run_id, status, ended)
        known.status = status


def _connect(place: Place) -> None:
    """Try a database once; MLflow would try for minutes, but a wrong password does not get better by that."""
    if place.served or place.database or not place.uri.startswith(tuple(PORTS)):
        return
    from sqlalchemy import create_engine, exc

    try:
        engine = create_engine(place.uri)
        engine.connect().close()
        engine.dispose()
    except (exc.SQLAlchemyError, ImportError) as error:
        raise RunFailed(f"MLflow {place.shown}: {first_line(error)}") from None


def _batches(points: list[Point]) -> Iterator[list[Point]]:
    """Consecutive points in groups of at most METRICS, cut between steps where that is possible."""
    batch: list[Point] = []
    row: list[Point] = []
    for position, point in enumerate(points):
        row.append(point)
        last = position + 1 == len(points) or points[position + 1].step != point.step
        if last or len(row) == METRICS:
            if len(batch) + len(row) > METRICS:
                yield batch
                batch = []
            batch += row
            row = []
    if batch:
        yield batch


@contextlib.contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Let one process at a time create, migrate and look through a database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not files.take(file, fcntl.LOCK_EX, OPENING):
            raise RunFailed(f"{path}: another process has been creating the database for too long")
        yield


def _tree() -> str:
    """A name for this results tree, so that it never ends the runs of another in a shared experiment."""
    path = FOLDER / "tree"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex)
    return path.read_text()


def first_line(error: BaseException) -> str:
    """The first line of an error, not too long."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]

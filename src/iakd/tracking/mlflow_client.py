"""Step 5 of mirroring: MLflow through its client. It imports mlflow, which takes seconds, only when it is used.

`RunStore` holds the runs of one experiment (and `models.ModelStore` its models); `download_weights` reads the model
registry.
"""

import contextlib
import functools
import gc
import itertools
import json
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Params
from iakd.errors import UserError
from iakd.tracking.address import TRACKING_STATE, MlflowAddress, mlflow_address
from iakd.tracking.content import FINISHED, RUNNING, DataSet, MetricValue, RunContent
from iakd.tracking.database import (
    MlflowTables,
    connect,
    find_moved_artifacts,
    first_line,
    make_database,
    one_line_errors,
    opening,
    set_environment,
)
from iakd.tracking.views import view_tags

MAX_METRICS, MAX_PARAMS = 800, 100  # per request; MLflow accepts 100 parameters, 100 tags and 1000 items in all
PAGE_SIZE = 1000
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not for chat
KEY, TREE, FILES, PARENT = "iakd.key", "iakd.tree", "iakd.files", "mlflow.parentRunId"
SETTINGS, CURRENT, EARLIER = "iakd.settings", "current", "earlier"  # a tag of runs and models, and its values
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
        set_environment()
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns at each attempt
        connect(address)
        import mlflow

        with one_line_errors(address):
            mlflow.set_tracking_uri(address.uri)
            with opening(address.opening_lock):
                make_database(address)
                find_moved_artifacts(address)
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


def download_weights(uri: str, params: Params, folder: Path) -> Path:
    """Download a registered model, `models:/NAME/VERSION` or `models:/NAME@ALIAS`, and return its file of weights.

    The URI may name a file inside the model, `models:/NAME/1/data/x.pth`. Raises UserError if the model does not
    exist, or has no file of weights or more than one; RunFailed if MLflow does not answer.
    """
    address = mlflow_address(params)
    if address.database and not address.database.exists():
        raise UserError(f"{uri}: no model registry, {address.database} does not exist; set MLFLOW_TRACKING_URI")
    address.check_reachable()
    set_environment()
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


def _tree_id() -> str:
    """Return an id of this results tree, so that it never ends another tree's runs in a shared experiment."""
    path = TRACKING_STATE / "tree"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex)
    return path.read_text()

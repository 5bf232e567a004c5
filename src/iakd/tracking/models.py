"""Exported models in MLflow: logged with the run that trained them, and registered if the settings name a model.

A logged model has three flavours of the same network: `python_function` takes image files and returns classes, `onnx`
and `pytorch` load what `iakd export` wrote. Nothing here computes a model, so the mirror stays light.
"""

import ast
import importlib.metadata
import importlib.resources
import io
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from iakd import files
from iakd.experiment.run_dir import ONNX, PT2
from iakd.tracking.content import DataSet, MetricValue, ModelContent
from iakd.tracking.mlflow_client import CURRENT, EARLIER, KEY, PAGE_SIZE, SETTINGS, TREE, MlflowRun, RunStore

SERVED_WITH = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
SHORT_HASH = 8  # characters
FOLDER = "export"  # of the exported files in a logged model
READY = "READY"
CHAMPION, CHALLENGER = "champion", "challenger"
VERSIONS_TAG = "mlflow.modelVersions"  # by which the page of a logged model names its registered versions
COMPARED = "iakd.compared"  # tag of the versions for which the aliases were set


@dataclass
class LoggedModel:
    """A model as MLflow has it."""

    model_id: str
    ready: bool
    tags: dict[str, str]


class ModelStore:
    """The logged models of one MLflow experiment. Every step looks first whether it was done by a killed process."""

    def __init__(self, store: RunStore) -> None:
        self.client = store.client
        self.experiment_id = store.experiment_id
        self.tree = store.tree
        self.models = self._load()

    def _load(self) -> dict[str, LoggedModel]:
        """Return the experiment's models that carry a key, by key; duplicates of a repeated request are deleted."""
        models: dict[str, LoggedModel] = {}
        token: str | None = None
        order = [{"field_name": "creation_time", "ascending": True}]
        while True:
            page = self.client.search_logged_models(
                [self.experiment_id], max_results=PAGE_SIZE, order_by=order, page_token=token
            )
            for model in page:
                key = model.tags.get(KEY)
                if key in models:
                    self.client.delete_logged_model(model.model_id)
                elif key:
                    models[key] = LoggedModel(model.model_id, str(model.status) == READY, dict(model.tags))
            token = page.token
            if not token:
                return models

    def log(
        self,
        content: ModelContent,
        run: MlflowRun,
        params: dict[str, str],
        metrics: list[MetricValue],
        data: list[DataSet],
    ) -> LoggedModel:
        """Log an exported model with the `run` that trained it, and that run's settings and results; return it."""
        model = self.models.get(content.key)
        if model is None:
            tags = {**content.tags, TREE: self.tree}
            created = self.client.create_logged_model(
                self.experiment_id, content.name, run.run_id, tags, params, "image classifier"
            )
            model = self.models[content.key] = LoggedModel(created.model_id, False, tags)
        if model.ready:
            return model
        self._link(model, run.run_id, metrics, data)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            self._save(content, folder, model, run.run_id)
            self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, READY)
        model.ready = True
        return model

    def _link(self, model: LoggedModel, run_id: str, metrics: list[MetricValue], data: list[DataSet]) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        outputs = self.client.get_run(run_id).outputs
        known = [output.model_id for output in outputs.model_outputs] if outputs else []
        if model.model_id not in known:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        there = {metric.key for metric in self.client.get_logged_model(model.model_id).metrics or []}
        measured_on = {("val_" if dataset.context == "training" else "test_"): dataset for dataset in data}
        missing = []
        for metric in metrics:
            if metric.name not in there:
                dataset = next((found for start, found in measured_on.items() if metric.name.startswith(start)), None)
                missing.append(
                    Metric(
                        metric.name,
                        metric.value,
                        metric.timestamp,
                        metric.step,
                        model_id=model.model_id,
                        dataset_name=dataset.name if dataset else None,
                        dataset_digest=dataset.digest if dataset else None,
                        run_id=run_id,
                    )
                )
        if missing:
            self.client.log_batch(run_id, metrics=missing)

    def _save(self, content: ModelContent, folder: Path, logged: LoggedModel, run_id: str) -> None:
        """Write an MLflow model: the exported files, and what MLflow needs to know of them."""
        import mlflow
        import pandas
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, DataType, Schema
        from mlflow.types.schema import Array

        code = served_code()
        module = f"iakd_served_{files.sha256_bytes(code.encode())[:SHORT_HASH]}"  # Python imports a name only once
        signature = ModelSignature(
            Schema([ColSpec(DataType.binary, "image")]),
            Schema(
                [
                    ColSpec(DataType.string, "label"),
                    ColSpec(DataType.double, "probability"),
                    ColSpec(Array(DataType.double), "probabilities"),
                ]
            ),
        )
        preprocessing = files.read_object(content.folder / "preprocessing.json", "export the model again")
        example = pandas.DataFrame({"image": [_grey_image(preprocessing["size"], preprocessing["mode"])]})
        with tempfile.TemporaryDirectory() as temporary:
            exported = Path(temporary, FOLDER)
            shutil.copytree(content.folder, exported, ignore=shutil.ignore_patterns(".*"))
            source = Path(temporary, f"{module}.py")
            source.write_text(code)
            model = Model(
                model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id, artifact_path=content.name
            )
            mlflow.pyfunc.save_model(
                folder,
                loader_module=module,
                data_path=str(exported),
                code_paths=[str(source)],
                mlflow_model=model,
                signature=signature,
                input_example=example,
                pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in SERVED_WITH],
                metadata={name: content.record[name] for name in ("pair", "method", "seed", "val_top1")},
            )
        made_with = content.record.get("made_with", {})
        data = f"data/{FOLDER}"
        model.add_flavor("onnx", onnx_version=made_with.get("onnx"), data=f"{data}/{ONNX}", code=None)
        if (content.folder / PT2).exists():
            model.add_flavor("pytorch", pytorch_version=made_with.get("torch"), model_data=data, code=None)
        model.save(str(folder / "MLmodel"))

    def mark(self, current: set[str | None]) -> None:
        """Mark this tree's models as of the current settings, if their weights are `current`, or of earlier ones."""
        for model in self.models.values():
            wanted = CURRENT if model.tags.get("iakd.model_sha256") in current else EARLIER
            if model.tags.get(TREE) == self.tree and model.tags.get(SETTINGS) != wanted:
                self.client.set_logged_model_tags(model.model_id, {SETTINGS: wanted})
                model.tags[SETTINGS] = wanted

    def register(self, content: ModelContent, model: LoggedModel, run: MlflowRun, name: str) -> None:
        """Make the model a version of the registered model `name`, at most once, and see to the aliases.

        Of all versions for the same data, the champion has the highest accuracy on the validation images, and the
        challenger is the next best one. They are set when there is a new version; until the next one, a user may move
        them.
        """
        from mlflow.exceptions import MlflowException

        versions = self._versions(name)
        if not any(version.tags[KEY] == content.key for version in versions):
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            self.client.create_model_version(
                name,
                f"models:/{model.model_id}",
                run.run_id,
                {tag: value for tag, value in content.tags.items() if tag != "iakd.path"},
                description=f"{content.name}: {float(content.tags['iakd.val_top1']):.2f} % of the validation images",
                model_id=model.model_id,
            )
            versions = self._versions(name)
        own = [version.version for version in versions if version.tags[KEY] == content.key]
        shown = json.loads(model.tags.get(VERSIONS_TAG, "[]"))
        missing = [entry for entry in ({"name": name, "version": version} for version in own) if entry not in shown]
        if missing:  # a server does this, a database does not
            model.tags[VERSIONS_TAG] = json.dumps([*shown, *missing])
            self.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: model.tags[VERSIONS_TAG]})
        new = [version for version in versions if COMPARED not in version.tags]
        if not new:
            return
        latest = max(new, key=lambda version: int(version.version))
        self._compare(name, [v for v in versions if v.tags["iakd.data_sha256"] == latest.tags["iakd.data_sha256"]])
        for version in new:
            self.client.set_model_version_tag(name, version.version, COMPARED, "true")

    def _versions(self, name: str) -> list[Any]:
        """Return the versions that come from here."""
        escaped = name.replace("'", "''")
        return [version for version in self.client.search_model_versions(f"name='{escaped}'") if KEY in version.tags]

    def _compare(self, name: str, versions: list[Any]) -> None:
        from mlflow.exceptions import MlflowException

        ranked: dict[str, Any] = {}  # by the hash of the weights: a model may have been exported twice
        for version in sorted(versions, key=lambda v: (float(v.tags["iakd.val_top1"]), int(v.version)), reverse=True):
            ranked.setdefault(version.tags["iakd.model_sha256"], version)
        best = [version.version for version in ranked.values()]
        for alias, version in zip((CHAMPION, CHALLENGER), [*best, None], strict=False):
            if version is not None:
                self.client.set_registered_model_alias(name, alias, version)
                continue
            try:
                self.client.delete_registered_model_alias(name, alias)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise


def served_code() -> str:
    """Return the code that serves an exported model. It prepares images with the very function on the model card."""
    card = importlib.resources.files("iakd.export").joinpath("templates", "classify.py.j2").read_text()
    (prepare,) = [node for node in ast.parse(card).body if isinstance(node, ast.FunctionDef)]
    template = importlib.resources.files("iakd.tracking").joinpath("templates", "served_model.py.j2").read_text()
    source = ast.get_source_segment(card, prepare)
    return jinja2.Template(template, keep_trailing_newline=True).render(prepare=source)


def _grey_image(size: list[int], mode: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, (size[1], size[0]), "grey").save(buffer, "PNG")
    return buffer.getvalue()

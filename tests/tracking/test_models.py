"""Exported models in MLflow: logged and registered once whatever happens, and usable from there."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import mlflow
import numpy as np
import pytest
from mlflow_view import MlflowView
from PIL import Image

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed
from iakd.tracking.mirror import sync
from iakd.tracking.models import ModelStore
from iakd.tracking.plan import planned

PAIR = "resnet20w8-resnet8w8"  # of the settings


@pytest.fixture(autouse=True)
def registry(params: Params, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "ERROR")
    mlflow.set_tracking_uri(params.tracking.uri)
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def models(view: MlflowView) -> list[Any]:
    experiment = view.client.get_experiment_by_name(view.experiment_name)
    return list(view.client.search_logged_models([experiment.experiment_id]))


def encoded(brightness: int, size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (brightness,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def leave_an_export(
    seed: int = 0, val_top1: float = 90.0, weights: bytes = b"weights", top1: float = 88.0, pair: str = PAIR
) -> Path:
    run = fake_runs.student(seed, pair=pair)
    fake_runs.train(run, model=weights)
    fake_runs.evaluate(run, top1)
    return fake_runs.export(run, weights, val_top1)


def test_an_exported_model_is_logged_with_the_run_that_trained_it(params: Params, view: MlflowView) -> None:
    fake_runs.manifest()
    folder = leave_an_export(seed=3)
    assert sync(params).endswith("1 run, 1 new")
    (model,) = models(view)
    run = view.only_run()
    assert (str(model.status), model.name, model.source_run_id) == (
        "READY",
        f"iakd-linear seed 3, {PAIR}",
        run.info.run_id,
    )
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert {metric.key: (metric.value, metric.dataset_name) for metric in model.metrics if metric.key != "test_n"} == {
        "test_top1": (88.0, "toy test"),
        "test_nll": (0.5, "toy test"),
        "val_top1": (54.0, "toy"),
    }
    assert view.values(run, "test_top1") == [(0, 88.0)]  # the run has it once, and so has the model
    assert model.params["recipe.lr"] == "0.1"
    about = mlflow.models.get_model_info(f"models:/{model.model_id}")
    assert about.signature.inputs.input_names() == ["image"]
    assert about.signature.outputs.input_names() == ["label", "probability", "probabilities"]
    assert set(about.flavors) == {"python_function", "onnx"}
    assert about.saved_input_example_info
    assert mlflow.onnx.load_model(f"models:/{model.model_id}").graph.name == "brightness"
    copied = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"), "data", "export")
    assert {path.name for path in copied.iterdir()} == {path.name for path in folder.iterdir()}


def test_the_logged_model_classifies_image_files(params: Params, view: MlflowView) -> None:
    leave_an_export()
    sync(params)
    (model,) = models(view)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    table = loaded.predict({"image": [encoded(0), encoded(255), encoded(200, (5, 5))]})
    assert list(table["label"]) == ["dark", "bright", "bright"]
    logits = np.array([[0.5, -0.5], [-0.5, 0.5], [0.5 - 200 / 255, 200 / 255 - 0.5]])
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(np.stack(table["probabilities"]), expected, atol=1e-6)
    assert np.allclose(table["probability"], expected.max(1), atol=1e-6)
    assert list(loaded.predict(loaded.input_example)["label"]) == ["bright"]  # grey is 128


def test_a_request_with_an_image_is_answered(params: Params, view: MlflowView) -> None:
    """As `mlflow models serve` does it."""
    from mlflow.pyfunc.scoring_server import CONTENT_TYPE_JSON, invocations

    leave_an_export()
    sync(params)
    (model,) = models(view)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    images = [base64.b64encode(encoded(value)).decode() for value in (10, 240)]
    for request in (
        {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}},
        {"dataframe_records": [{"image": image} for image in images]},
        {"inputs": {"image": images}},
    ):
        answer = invocations(json.dumps(request), CONTENT_TYPE_JSON, loaded, loaded.metadata.get_input_schema())
        assert answer.status == 200
        assert [row["label"] for row in json.loads(answer.response)["predictions"]] == ["dark", "bright"]
    with pytest.raises(Exception, match="image 2 is not an image file in a known format"):
        loaded.predict({"image": [encoded(0), b"hello"]})


def test_two_models_in_one_process_keep_their_own_preparation(params: Params, view: MlflowView) -> None:
    leave_an_export()
    folder = leave_an_export(pair="U-V")
    (folder / "labels.txt").write_text("black\nwhite\n")
    record = json.loads((folder / "export.json").read_text())
    record["files"]["labels.txt"] = files.sha256_file(folder / "labels.txt")
    files.write_json(folder / "export.json", record)
    sync(params)
    by_pair = {model.tags["iakd.pair"]: mlflow.pyfunc.load_model(f"models:/{model.model_id}") for model in models(view)}
    assert [by_pair[pair].predict({"image": [encoded(0)]})["label"][0] for pair in (PAIR, "U-V")] == ["dark", "black"]


@pytest.mark.parametrize("step", ["_link", "_save", "register", "_compare"])
def test_whatever_is_interrupted_is_done_once(
    settings: Callable[..., Params], params: Params, view: MlflowView, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    registering = settings(uri=params.tracking.uri, register="toys")
    leave_an_export()
    for after in (False, True):
        done = getattr(ModelStore, step)

        def interrupted(*arguments: Any, after: bool = after, done: Callable[..., None] = done) -> None:
            if after:
                done(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ModelStore, step, interrupted)
            sync(registering)
    for _ in range(2):
        assert sync(registering).endswith("1 run, 0 new")
    (model,) = models(view)
    assert str(model.status) == "READY"
    assert len(view.only_run().outputs.model_outputs) == 1
    (version,) = view.client.search_model_versions("name='toys'")
    assert (version.source, version.run_id) == (f"models:/{model.model_id}", view.only_run().info.run_id)
    assert view.client.get_registered_model("toys").aliases == {"champion": version.version}
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "toys", "version": version.version}]


def test_the_champion_is_the_best_on_the_validation_images(
    settings: Callable[..., Params], params: Params, view: MlflowView
) -> None:
    def aliases() -> dict[str, int]:
        found = view.client.get_registered_model("toys").aliases
        return {alias: int(version) for alias, version in found.items()}

    registering = settings(uri=params.tracking.uri, register="toys")
    leave_an_export(0, val_top1=90.0, weights=b"first", top1=99.0)
    sync(registering)
    assert aliases() == {"champion": 1}
    leave_an_export(1, val_top1=92.0, weights=b"second", top1=50.0)  # the test images have no say
    sync(registering)
    assert aliases() == {"champion": 2, "challenger": 1}
    leave_an_export(2, val_top1=91.0, weights=b"third")
    sync(registering)
    assert aliases() == {"champion": 2, "challenger": 3}
    view.client.set_registered_model_alias("toys", "champion", "1")
    sync(registering)
    assert aliases() == {"champion": 1, "challenger": 3}  # what a user has moved stays until there is a new version
    assert mlflow.pyfunc.load_model("models:/toys@champion").predict({"image": [encoded(0)]})["label"][0] == "dark"


def test_each_of_several_pairs_has_a_name_of_its_own(settings: Callable[..., Params]) -> None:
    one = settings(register="toys")
    assert planned(one).registered == {"resnet20w8-resnet8w8": "toys"}
    two = one.model_copy(update={"students": [*one.students, one.students[0].model_copy(update={"name": "small"})]})
    assert planned(two).registered == {
        "resnet20w8-resnet8w8": "toys-resnet20w8-resnet8w8",
        "resnet20w8-small": "toys-resnet20w8-small",
    }
    assert planned(settings()).registered == {}


def test_a_name_that_is_set_later_registers_what_is_logged(
    settings: Callable[..., Params], params: Params, view: MlflowView
) -> None:
    leave_an_export()
    sync(params)
    assert not view.client.search_registered_models()
    sync(settings(uri=params.tracking.uri, register="toys"))
    assert len(view.client.search_model_versions("name='toys'")) == len(models(view)) == 1


def test_an_altered_file_is_not_logged(params: Params, view: MlflowView) -> None:
    folder = leave_an_export()
    (folder / "model.onnx").write_bytes(b"something else")
    assert sync(params).endswith("1 run, 1 new, 1 skipped because of damaged files")
    assert models(view) == []


def test_an_export_of_a_student_that_was_trained_again_waits(params: Params, view: MlflowView) -> None:
    leave_an_export()
    again = fake_runs.student(key="again", pair=PAIR)
    fake_runs.train(again, model=b"other weights")
    sync(params)
    assert models(view) == []
    fake_runs.export(again, b"other weights")
    sync(params)
    assert [model.source_run_id for model in models(view)] == [view.runs()["again"].info.run_id]


def test_a_refused_model_is_one_line(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no such thing\nand more")

    leave_an_export()
    monkeypatch.setattr(ModelStore, "_save", refuse)
    with pytest.raises(RunFailed, match=rf"export/{PAIR}/iakd-linear: no such thing$"):
        sync(params)


def test_another_database_gets_the_models_too(
    params: Params, empty_database: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_an_export()
    sync(params)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow sets it itself
    copy = tree / "again.db"
    shutil.copy(empty_database, copy)
    again = params.model_copy(update={"tracking": params.tracking.model_copy(update={"uri": f"sqlite:///{copy}"})})
    sync(again)
    assert [str(model.status) for model in models(MlflowView(again))] == ["READY"]

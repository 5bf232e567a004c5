"""Weights from a model registry, in the forms in which MLflow stores models."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

from iakd.config import Params
from iakd.errors import UserError
from iakd.models.checkpoints import read_checkpoint
from iakd.tracking.mlflow_client import download_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv1(x).mean((2, 3)))


@pytest.fixture
def registry(params: Params, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "ERROR")
    mlflow.set_tracking_uri(params.tracking.uri)
    mlflow.set_experiment("models")
    yield params
    mlflow.set_tracking_uri(None)


def test_weights_that_were_logged_as_a_file(registry: Params, tree: Path) -> None:
    """As docs/networks.md says."""
    net = Net()
    torch.save(net.state_dict(), "weights.pth")
    with mlflow.start_run() as run:
        mlflow.log_artifact("weights.pth", "weights")
    client = mlflow.MlflowClient()
    client.create_registered_model("teacher")
    client.create_model_version("teacher", f"runs:/{run.info.run_id}/weights", run.info.run_id)
    client.set_registered_model_alias("teacher", "best", 1)
    for uri in ("models:/teacher/1", "models:/teacher@best", "models:/teacher/1/weights.pth"):
        path = download_weights(uri, registry, tree / "here")
        assert torch.equal(read_checkpoint(path, "")[0].tensors["fc.weight"], net.fc.weight)
    with pytest.raises(UserError, match=r"models:/teacher/2: error from MLflow .*sqlite.*: .*"):
        download_weights("models:/teacher/2", registry, tree / "here")


def test_models_that_mlflow_logged(registry: Params, tree: Path) -> None:
    net = Net().eval()
    example = torch.ones(2, 3, 8, 8).numpy()
    bare = {"name": "model", "pip_requirements": ["torch"]}  # otherwise MLflow spends seconds on finding out
    mlflow.pytorch.log_model(net, registered_model_name="exported", input_example=example, **bare)
    found = read_checkpoint(download_weights("models:/exported/1", registry, tree / "here"), "")[0].tensors
    assert torch.equal(found["conv1.weight"], net.conv1.weight)
    mlflow.pytorch.log_model(net, registered_model_name="pickled", serialization_format="pickle", **bare)
    path = download_weights("models:/pickled/1", registry, tree / "there")
    with pytest.raises(UserError, match=r"models:/pickled/1 holds other objects than tensors.*state_dict"):
        read_checkpoint(path, "models:/pickled/1")


def test_no_weights_several_files_and_no_registry(
    registry: Params, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "files").mkdir()
    with mlflow.start_run() as run:
        for name in ("a.txt", "b.pth", "c.pth"):
            (tree / "files" / name).write_text("x")
        mlflow.log_artifacts("files", "several")
        mlflow.log_artifact("files/a.txt", "none")
    client = mlflow.MlflowClient()
    for name in ("several", "none"):
        client.create_registered_model(name)
        client.create_model_version(name, f"runs:/{run.info.run_id}/{name}", run.info.run_id)
    with pytest.raises(UserError, match=r"has several files: b.pth, c.pth; name one, as in models:/several/1/b.pth"):
        download_weights("models:/several/1", registry, tree / "here")
    with pytest.raises(UserError, match="has no file of weights"):
        download_weights("models:/none/1", registry, tree / "there")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow sets it itself
    missing = registry.model_copy(update={"tracking": registry.tracking.model_copy(update={"uri": "sqlite:///no.db"})})
    with pytest.raises(UserError, match=r"no model registry, no\.db does not exist"):
        download_weights("models:/teacher/1", missing, tree / "nowhere")

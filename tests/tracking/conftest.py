"""Working directories, settings and databases for the tests of the tracking."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iakd.config import Params, parse


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def settings() -> Callable[..., Params]:
    """Make settings from the data set's name and the settings below `tracking`."""

    def make(name: str = "toy", **tracking: Any) -> Params:
        return parse(
            {
                "dataset": {"name": name},
                "teachers": [{"arch": "resnet20", "width": 8}],
                "students": [{"arch": "resnet8", "width": 8}],
                "methods": {"scratch": {}, "kd": None, "kd-hot": {"method": "kd", "kd": {"temperature": 8}}},
                "tracking": tracking,
            },
            "test",
        )

    return make


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, made once: it takes MLflow seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def params(tree: Path, empty_database: Path, settings: Callable[..., Params]) -> Params:
    """Settings with a database of their own, by absolute path: MLflow opens each path once per process."""
    shutil.copy(empty_database, tree / "mlflow.db")
    return settings(uri=f"sqlite:///{tree / 'mlflow.db'}")


@pytest.fixture
def view(params: Params) -> Any:
    """What MLflow shows of the experiment of `params`."""
    from mlflow_view import MlflowView

    return MlflowView(params)

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


def make_params(name: str = "toy", **tracking: Any) -> Params:
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


@pytest.fixture
def settings() -> Callable[..., Params]:
    return make_params


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; making one takes MLflow seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def params(tree: Path, migrated: Path) -> Params:
    """Settings with a database of their own, by absolute path: one process may open each once."""
    shutil.copy(migrated, tree / "mlflow.db")
    return make_params(uri=f"sqlite:///{tree / 'mlflow.db'}")

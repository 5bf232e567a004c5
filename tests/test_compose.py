"""services/compose.yaml: complete, and the server that the tests start without containers."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SERVICES = ROOT / "services"
COMPOSE: dict[str, Any] = yaml.safe_load((SERVICES / "compose.yaml").read_text())


def test_it_installs_the_versions_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"(\w+)(?:\[\w+\])?==([\w.]+)", COMPOSE["services"]["mlflow"]["build"]["dockerfile_inline"])
    assert dict(pinned).keys() == {"mlflow", "psycopg"}
    for name, version in pinned:
        assert f"\n{name}=={version} \\" in lock


def test_every_variable_can_be_set_in_the_example() -> None:
    example = (SERVICES / "example.env").read_text()
    used = re.findall(r"\$\{(\w+)(:\?|:-|\})", (SERVICES / "compose.yaml").read_text())
    required = {name for name, kind in used if kind == ":?"}
    optional = {name for name, kind in used if kind == ":-"}
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == required
    assert set(re.findall(r"^# (\w+)=\S+$", example, re.MULTILINE)) == optional - {"ADMIN_NAME"}
    assert {name for name, _ in used} == required | optional
    assert "services/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_it_starts_mlflow_as_the_tests_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same options and variables, as far as these are no addresses, passwords or numbers of processes."""
    monkeypatch.syspath_prepend(ROOT / "tests/services")
    from stack import Stack

    tested, mlflow = Stack(tmp_path).mlflow, COMPOSE["services"]["mlflow"]
    command = mlflow["command"][-1].partition("exec mlflow server")[2].split()
    assert set(command[::2]) == {option for option in tested.command if option.startswith("--")}
    assert command[command.index("--app-name") + 1] == tested.command[tested.command.index("--app-name") + 1]
    assert set(mlflow["environment"]) - {"BUCKET", "MLFLOW_SERVER_ALLOWED_HOSTS"} == set(tested.environment)
    permission = COMPOSE["configs"]["auth.ini"]["content"].splitlines()[1]
    assert permission in (tmp_path / "auth.ini").read_text().splitlines()

"""MLflow's pages on the right database."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iakd.config import Params
from iakd.errors import UserError
from iakd.tracking import ui
from iakd.tracking.address import MlflowAddress, tracking_address


@pytest.fixture(autouse=True)
def up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "wait_for_follower", lambda _: None)
    monkeypatch.setattr(MlflowAddress, "last_note", lambda _: {"experiment_id": "7"})


def test_the_server_gets_the_database_of_the_settings(
    tree: Path, settings: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append([program, *command]))
    monkeypatch.setattr(os, "fork", lambda: 1)
    monkeypatch.setenv("PYTHONWARNINGS", "")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "")
    for name in ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
        monkeypatch.setenv(name, "")  # so that what is set here ends with the test
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ui.serve(settings(uri="sqlite:///here.db", artifacts="there"), port)
    (command,) = commands
    assert command[0] == command[1] == sys.executable
    options = dict(zip(command[5::2], command[6::2], strict=True))
    assert options["--backend-store-uri"] == "sqlite:///here.db"
    assert options["--artifacts-destination"] == "there"
    assert (options["--host"], options["--port"]) == ("127.0.0.1", str(port))
    assert "mlflow.localhost:*" in os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == f"http://mlflow.localhost:{port}"


def test_the_address_is_announced_once_the_server_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Answer:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...

    answers: list[Any] = [ConnectionRefusedError(), Answer()]

    def ask(url: str, timeout: float) -> Any:
        assert url == "http://127.0.0.1:5005/health"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ui.urllib.request, "urlopen", ask)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        ui.announce(os.getppid(), 5005, "/#/page")
    assert "MLflow: http://mlflow.localhost:5005/#/page\n" in capsys.readouterr().out
    assert not answers


def test_the_page_of_a_server_is_printed(
    tree: Path, settings: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    ui.serve(settings(uri="http://me:secret@tracking:80/"), 5000)
    page = "/#/experiments/7/runs?viewStateShareKey=iakd-students&workflowType=machine_learning"
    assert capsys.readouterr().out == f"http://me:…@tracking:80{page}\n"


def test_a_taken_port_is_named(tree: Path, settings: Callable[..., Params]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=r"in use.*--port"):
        ui.serve(settings(), taken.getsockname()[1])


def test_tracking_that_is_off_has_nothing_to_show(tree: Path, settings: Callable[..., Params]) -> None:
    assert tracking_address(settings(enabled=False)) is None
    with pytest.raises(UserError, match="enabled: false"):
        ui.serve(settings(enabled=False), 5000)

"""`iakd track ui`: start MLflow's pages on the right database, and print the address of the page of this experiment."""

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from typing import NoReturn

from iakd.config import Params
from iakd.errors import UserError
from iakd.tracking.address import tracking_address
from iakd.tracking.database import prepare_database
from iakd.tracking.follower import wait_for_follower
from iakd.tracking.views import STUDENTS

HOST = "127.0.0.1"
NAME = "mlflow.localhost"  # this machine, to browsers; at 127.0.0.1, MLflow opens an assistant over its pages
START_TIMEOUT = 120.0  # seconds


def serve(params: Params, port: int) -> None:
    """Replace this process by MLflow's server on 127.0.0.1. If the settings name a server, only print its address.

    Raises UserError if tracking is off or the port is taken.
    """
    address = tracking_address(params)
    if address is None:
        raise UserError("nothing to show: tracking is off (tracking.enabled: false)")
    wait_for_follower(params)
    experiment = address.last_note().get("experiment_id")
    page = (
        f"/#/experiments/{experiment}/runs?viewStateShareKey={STUDENTS}&workflowType=machine_learning"
        if experiment
        else ""
    )
    if address.is_server:
        print(f"{address.display.rstrip('/')}{page}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; choose another one with --port") from None
    address.check_reachable()
    if not experiment:
        prepare_database(address)
    sys.stdout.flush()
    server = os.getpid()
    if os.fork() == 0:
        announce(server, port, page)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", f"{NAME}:*,localhost:*,{HOST}:*")
    os.environ.setdefault("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", f"http://{NAME}:{port}")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # it starts nine more processes, which nothing here uses
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address.uri]
    command += ["--artifacts-destination", address.artifacts, "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]  # no line for each request
    os.execv(sys.executable, command)


def announce(server: int, port: int, page: str) -> NoReturn:
    """Wait until the server answers, print the address of its page, and exit this process."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and os.getppid() == server:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                print(f"\nMLflow: http://{NAME}:{port}{page}")
                print(f"(http://{HOST}:{port} where a browser does not find it; stop with Ctrl-C)\n", flush=True)
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    os._exit(0)

"""`iakd track ui`: MLflow's own pages over the right store, and the address of the page that compares the runs."""

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from typing import NoReturn

from iakd.config import Params
from iakd.errors import UserError
from iakd.tracking.launch import finish
from iakd.tracking.place import place_of

HOST = "127.0.0.1"
START = 120.0  # seconds that the server may take


def serve(params: Params, port: int) -> None:
    """Become MLflow's server on the loopback address; where the settings name a server, only say where it is.

    Raises UserError where tracking is off or the port is taken.
    """
    place = place_of(params)
    if place is None:
        raise UserError("there is nothing to show: the settings say tracking.enabled: false")
    finish(params)
    experiment = place.note().get("experiment_id")
    page = f"/#/experiments/{experiment}/runs?compareRunsMode=CHART" if experiment else ""
    if place.served:
        print(f"{place.shown.rstrip('/')}{page}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; choose another one with --port") from None
    sys.stdout.flush()
    server = os.getpid()
    if os.fork() == 0:
        _announce(server, f"http://{HOST}:{port}", page)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # nine further processes that nothing here needs
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place.uri]
    command += ["--artifacts-destination", place.artifacts, "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]  # no line for each request
    os.execv(sys.executable, command)


def _announce(server: int, address: str, page: str) -> NoReturn:
    """Wait until the server answers, print where its page is, and end."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and os.getppid() == server:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                print(f"\nMLflow: {address}{page} (Ctrl-C ends it)\n", flush=True)
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    os._exit(0)

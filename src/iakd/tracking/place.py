"""Where a results tree is mirrored to, and where the mirroring keeps its own files."""

import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iakd.config import Params
from iakd.errors import RunFailed
from iakd.experiment.jobs import STATE
from iakd.files import digest

FOLDER = STATE / "tracking"
NOTE = "mirrored.json"
ANSWER = 2.0  # seconds that a server has to show that it is there
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class Place:
    """One experiment in one MLflow, fed by one data set's results in this working directory."""

    uri: str
    experiment: str
    dataset: str
    artifacts: str

    @property
    def folder(self) -> Path:
        """Locks, settings and notes of whoever mirrors to this place."""
        where = str(self.database.resolve()) if self.database else self.uri.rstrip("/")
        return FOLDER / digest([where, self.experiment, self.dataset])[:16]

    @property
    def shown(self) -> str:
        """The address for readers: without a password."""
        return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:…@", self.uri)

    @property
    def served(self) -> bool:
        """Whether an MLflow server stands between, which decides where artifacts go."""
        return urlsplit(self.uri).scheme in ("http", "https")

    @property
    def database(self) -> Path | None:
        """The file of an SQLite database; None for anything else."""
        scheme, separator, path = self.uri.partition(":///")
        if not separator or scheme.partition("+")[0] != "sqlite":
            return None
        return Path(path.partition("?")[0])

    @property
    def identity(self) -> list[int] | None:
        """Which file the SQLite database is: another one (or None) means that it was deleted or replaced."""
        if self.database is None:
            return []
        try:
            status = self.database.stat()
        except OSError:
            return None
        return [status.st_dev, status.st_ino]

    @property
    def opening(self) -> Path:
        """The lock under which the store is opened: of processes that create one database most crash."""
        if self.database:
            return self.database.with_name(self.database.name + ".lock")
        return FOLDER / f"{digest(self.uri)[:16]}.lock"

    def note(self) -> dict[str, Any]:
        """What the last complete mirroring noted; empty where there was none, or its database is gone."""
        try:
            value = json.loads((self.folder / NOTE).read_text())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) and value.get("identity") == self.identity is not None else {}

    def mirrored(self) -> str | None:
        """The signature of the files that the last complete mirroring showed."""
        return self.note().get("signature")

    def artifact_location(self) -> str | None:
        """The experiment's artifact folder as a URI; None where a server decides."""
        if self.served:
            return None
        if "://" in self.artifacts:
            return f"{self.artifacts.rstrip('/')}/{self.experiment}"
        return (Path(self.artifacts).resolve() / self.experiment).as_uri()

    def check(self) -> None:
        """See within a few seconds, and without importing mlflow, whether there is anybody to talk to.

        Raises RunFailed with one line where a server does not answer or a database file cannot be written.
        """
        trouble = self._trouble()
        if trouble:
            raise RunFailed(f"MLflow {self.shown}: {trouble}")

    def _trouble(self) -> str | None:
        if self.database:
            return _database_trouble(self.database)
        answers: list[str | None] = []
        asking = threading.Thread(target=lambda: answers.append(_network_trouble(self.uri)), daemon=True)
        asking.start()  # of its own, because looking up a host's name knows no time limit
        asking.join(2 * ANSWER)
        return answers[0] if answers else "no answer (is the host's name known here?)"


def place_of(params: Params) -> Place | None:
    """Where these settings, or MLFLOW_TRACKING_URI before them, mirror to; None where tracking is off."""
    return store_of(params) if params.tracking.enabled else None


def store_of(params: Params) -> Place:
    """The MLflow that these settings, or MLFLOW_TRACKING_URI before them, name, whether tracking is on or off."""
    tracking = params.tracking
    return Place(
        uri=os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri,
        experiment=tracking.experiment or f"iakd-{params.dataset.name}",
        dataset=params.dataset.name,
        artifacts=tracking.artifacts,
    )


def _database_trouble(path: Path) -> str | None:
    if not path.exists():
        return None  # it will be made
    import sqlite3  # here, because every training imports this module

    try:
        with sqlite3.connect(path, timeout=ANSWER, isolation_level=None) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        connection.close()
    except sqlite3.Error as error:
        return str(error)
    return None


def _network_trouble(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError as error:
        return f"no address ({error})"
    if parts.scheme in ("http", "https"):
        return _server_trouble(uri)
    return _port_trouble(parts.hostname, port) if parts.hostname and port else None


def _server_trouble(uri: str) -> str | None:
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    address = re.sub(r"://[^/@]*@", "://", uri).rstrip("/")  # without name and password
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=ANSWER):
            return None
    except urllib.error.HTTPError:
        return None  # somebody answers; whether it is MLflow, MLflow's client will say
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return None  # which certificates are trusted is set in MLflow's own variables
        return f"the server does not answer ({error.reason})"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"the server does not answer ({error})"


def _port_trouble(host: str, port: int) -> str | None:
    import socket

    try:
        socket.create_connection((host, port), timeout=ANSWER).close()
    except OSError as error:
        return f"{host}:{port} does not answer ({error})"
    return None

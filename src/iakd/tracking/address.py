"""Which MLflow a results tree is mirrored to, and where the mirroring keeps its own files.

Every training imports this module, so it imports neither mlflow nor sqlite3 at the top.
"""

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
from iakd.experiment.provenance import repository_of_experiment
from iakd.files import digest

TRACKING_STATE = STATE / "tracking"
NOTE = "mirrored.json"
ANSWER_TIMEOUT = 2.0  # seconds
LONGEST_FOLDER = 200  # bytes; file systems allow 255
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class MlflowAddress:
    """One experiment in one MLflow, which shows the results of one data set from this working directory."""

    uri: str
    experiment: str
    dataset: str
    artifacts: str

    @property
    def folder(self) -> Path:
        """Folder for the locks, settings and notes of the processes that mirror to this address."""
        where = str(self.database.resolve()) if self.database else self.uri.rstrip("/")
        return TRACKING_STATE / digest([where, self.experiment, self.dataset])[:16]

    @property
    def display(self) -> str:
        """The address for messages, with the password hidden."""
        return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:…@", self.uri)

    @property
    def is_server(self) -> bool:
        """Whether this is an MLflow server, which then decides where artifacts go."""
        return urlsplit(self.uri).scheme in ("http", "https")

    @property
    def database(self) -> Path | None:
        """The file of an SQLite database; None for anything else."""
        scheme, separator, path = self.uri.partition(":///")
        if not separator or scheme.partition("+")[0] != "sqlite":
            return None
        return Path(path.partition("?")[0])

    @property
    def database_id(self) -> list[int] | None:
        """Device and inode of the SQLite file: a different value, or None, means that it was deleted or replaced.

        Empty where there is no such file to check.
        """
        if self.database is None:
            return []
        try:
            status = self.database.stat()
        except OSError:
            return None
        return [status.st_dev, status.st_ino]

    @property
    def opening_lock(self) -> Path:
        """Lock to hold while opening the database: most of several processes that create it at once would crash."""
        if self.database:
            return self.database.with_name(self.database.name + ".lock")
        return TRACKING_STATE / f"{digest(self.uri)[:16]}.lock"

    def last_note(self) -> dict[str, Any]:
        """Return what the last complete mirroring noted; empty if there was none or its database is gone."""
        try:
            value = json.loads((self.folder / NOTE).read_text())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) and value.get("identity") == self.database_id is not None else {}

    def mirrored_signature(self) -> str | None:
        """Return the signature of the files that the last complete mirroring sent."""
        return self.last_note().get("signature")

    def artifact_location(self) -> str | None:
        """Return the experiment's artifact folder as a URI; None if a server decides."""
        if self.is_server:
            return None
        # A folder of its own, whatever the experiment is called: /Shared/x and ../x must not lead out of `artifacts`.
        name = re.sub(r"[/\\]", "_", self.experiment).encode()[:LONGEST_FOLDER].decode(errors="ignore")
        folder = name if name.strip(".") else "_" * len(name)
        if "://" in self.artifacts:
            return f"{self.artifacts.rstrip('/')}/{folder}"
        return (Path(self.artifacts).resolve() / folder).as_uri()

    def check_reachable(self) -> None:
        """Check within a few seconds, without importing mlflow, that MLflow can be reached.

        Raises RunFailed with one line if a server does not answer or a database file cannot be written.
        """
        problem = self._problem()
        if problem:
            raise RunFailed(f"MLflow {self.display}: {problem}")

    def _problem(self) -> str | None:
        if self.database:
            return _database_problem(self.database)
        answers: list[str | None] = []
        # in a thread, because resolving a host name has no time limit
        thread = threading.Thread(target=lambda: answers.append(_network_problem(self.uri)), daemon=True)
        thread.start()
        thread.join(2 * ANSWER_TIMEOUT)
        return answers[0] if answers else "no answer (can this machine resolve the host name?)"


def tracking_address(params: Params) -> MlflowAddress | None:
    """Return the MLflow to mirror to; None if tracking is off."""
    return mlflow_address(params) if params.tracking.enabled else None


def mlflow_address(params: Params) -> MlflowAddress:
    """Return the MLflow in the settings, whether tracking is on or off. MLFLOW_TRACKING_URI takes precedence.

    In a folder that DVC deletes after an experiment, relative paths start from the user's repository.
    """
    tracking = params.tracking
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri, tracking.artifacts
    home = repository_of_experiment()
    if home:
        scheme, separator, path = uri.partition(":///")
        uri = f"{scheme}:///{home / path}" if separator and scheme.partition("+")[0] == "sqlite" else uri
        artifacts = artifacts if "://" in artifacts else str(home / artifacts)
    return MlflowAddress(
        uri=uri,
        experiment=tracking.experiment or f"iakd-{params.dataset.name}",
        dataset=params.dataset.name,
        artifacts=artifacts,
    )


def _database_problem(path: Path) -> str | None:
    if path.exists() and not path.is_file():
        return "is not a file; set tracking.uri to sqlite:///FILE"
    folder = next((above for above in path.absolute().parents if above.exists()), path)
    for needed in (path, folder):  # SQLite writes a journal beside it, and would notice only when it does
        if needed.exists() and not os.access(needed, os.W_OK):
            return f"{needed} cannot be written: fix the permissions"
    if not path.exists():
        return None  # it will be created
    import sqlite3

    try:
        with sqlite3.connect(path, timeout=ANSWER_TIMEOUT, isolation_level=None) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        connection.close()
    except sqlite3.Error as error:
        return str(error)
    return None


def _network_problem(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError as error:
        return f"not a valid address ({error})"
    if parts.scheme in ("http", "https"):
        return _server_problem(uri)
    return _port_problem(parts.hostname, port) if parts.hostname and port else None


def _server_problem(uri: str) -> str | None:
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    address = re.sub(r"://[^/@]*@", "://", uri).rstrip("/")  # without name and password
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=ANSWER_TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None  # something answers; MLflow's client will report it if that is not MLflow
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return None  # MLflow has its own variables for trusted certificates
        return f"the server does not answer ({error.reason})"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"the server does not answer ({error})"


def _port_problem(host: str, port: int) -> str | None:
    import socket

    try:
        socket.create_connection((host, port), timeout=ANSWER_TIMEOUT).close()
    except OSError as error:
        return f"{host}:{port} does not answer ({error})"
    return None

"""An MLflow server with PostgreSQL and S3, on this machine only, for tests and for a look at it:

    python tests/services/stack.py start FOLDER     prints the variables that MLflow's clients need
    python tests/services/stack.py stop FOLDER

The S3 server (moto) keeps its objects in memory. Debian: apt install postgresql; Python: moto[server], flask-wtf, and
the extras postgres and s3.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST, BUCKET = "127.0.0.1", "mlflow"
ADMIN, PASSWORD = "admin", "not-a-secret-1"
STARTING = 600.0  # seconds, on a busy machine
S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
MODULES = ("moto", "boto3", "psycopg", "flask_wtf")


def postgres_program(name: str) -> str | None:
    """Return the path of one of PostgreSQL's programs, which Debian keeps off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, places)]))


def missing(modules: Sequence[str] = MODULES, programs: Sequence[str] = ("initdb", "postgres")) -> str | None:
    """Return what has to be installed before the stack can be started; None if it can."""
    needed = [name for name in modules if importlib.util.find_spec(name) is None]
    needed += [name for name in programs if postgres_program(name) is None]
    return f"not installed: {', '.join(needed)}" if needed else None


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Service:
    """A server process, which can be killed and started again with the same data."""

    command: list[str]
    health: str  # an address, or host:port
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    pid: int | None = None

    def start(self) -> None:
        """Start it without waiting."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
                user=self.user,
                cwd=self.log.parent,
            )
        self.pid = process.pid

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + STARTING
        while not self.answers():
            assert self.pid is not None and time.monotonic() < deadline and is_alive(self.pid), self.log.read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it answers."""
        try:
            if self.health.startswith("http"):
                urllib.request.urlopen(self.health, timeout=2).close()
            else:
                host, _, port = self.health.partition(":")
                socket.create_connection((host, int(port)), timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def end(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all of its processes, and wait for their end."""
        if self.pid is None:
            return
        try:
            os.killpg(self.pid, number)
            while is_alive(self.pid):
                time.sleep(0.05)
        except ProcessLookupError:
            pass
        self.pid = None


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended is reaped if it is a child."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return Path(f"/proc/{pid}").exists()


class Stack:
    """PostgreSQL, S3 and the MLflow server, with their data below `folder`."""

    def __init__(self, folder: Path) -> None:
        ports = [free_port() for _ in range(3)]
        self.folder = folder
        self.uri = f"http://{HOST}:{ports[2]}"
        self.s3_address = f"http://{HOST}:{ports[1]}"
        database = f"postgresql+psycopg://postgres@{HOST}:{ports[0]}"
        # PostgreSQL refuses to run as root
        self.user = "postgres" if os.geteuid() == 0 else None
        options = [
            "-p",
            str(ports[0]),
            "-k",
            str(folder / "postgres"),
            "-c",
            f"listen_addresses={HOST}",
            "-c",
            "fsync=off",
        ]
        self.postgres = Service(
            [str(postgres_program("postgres")), "-D", str(folder / "postgres/data"), *options],
            f"{HOST}:{ports[0]}",
            folder / "postgres/log",
            user=self.user,
        )
        self.s3 = Service(
            [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(ports[1])],
            f"{HOST}:{ports[1]}",
            folder / "s3.log",
        )
        self.auth = folder / "auth.ini"
        self.auth.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}/auth\n")
        self.mlflow = Service(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports[2]), "--workers", "1"),
                *("--backend-store-uri", f"{database}/mlflow", "--artifacts-destination", f"s3://{BUCKET}"),
                *("--app-name", "basic-auth"),
            ],
            f"{self.uri}/health",
            folder / "mlflow.log",
            {
                **S3_KEYS,
                "MLFLOW_S3_ENDPOINT_URL": self.s3_address,
                "MLFLOW_AUTH_CONFIG_PATH": str(self.auth),
                "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
                "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "not-a-secret",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes less
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        )

    @property
    def bucket(self) -> Any:
        """The bucket of the S3 server, for a look at the objects that is not MLflow's or DVC's."""
        import boto3

        session = boto3.Session("test", "test", region_name=S3_KEYS["AWS_DEFAULT_REGION"])
        return session.resource("s3", endpoint_url=self.s3_address).Bucket(BUCKET)

    @property
    def services(self) -> list[Service]:
        """All services, in the order in which they start."""
        return [self.postgres, self.s3, self.mlflow]

    def client(self, name: str = ADMIN, password: str = PASSWORD) -> dict[str, str]:
        """Return the environment of a client, in MLflow's own variables."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": password,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def start(self) -> None:
        """Create the databases and the bucket, start everything, and wait until it answers."""
        data = self.folder / "postgres"
        data.mkdir()
        if self.user:
            self.folder.chmod(0o755)
            shutil.chown(data, self.user)
        initdb = [
            str(postgres_program("initdb")),
            "-D",
            str(data / "data"),
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, user=self.user, cwd=data, stdout=subprocess.DEVNULL)
        for service in (self.postgres, self.s3):
            service.start()
        for service in (self.postgres, self.s3):
            service.wait()
        import psycopg

        host, _, port = self.postgres.health.partition(":")
        with psycopg.connect(f"postgresql://postgres@{host}:{port}/postgres", autocommit=True) as connection:
            for name in ("mlflow", "auth"):
                connection.execute(f"CREATE DATABASE {name}")
        self.bucket.create()
        self.mlflow.start()
        self.mlflow.wait()

    def stop(self) -> None:
        """End everything; the data stay."""
        for service in reversed(self.services):
            service.end(signal.SIGINT if service is self.postgres else signal.SIGKILL)


def main() -> None:
    """Start or stop a stack."""
    action, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    note = folder / "pids.json"
    if action == "start":
        folder.mkdir(parents=True)
        stack = Stack(folder)
        stack.start()
        note.write_text(json.dumps([service.pid for service in stack.services]))
        print(*(f"export {name}={value}" for name, value in stack.client().items()), sep="\n")
    else:
        for pid in reversed(json.loads(note.read_text())):
            os.killpg(pid, signal.SIGINT)


if __name__ == "__main__":
    main()

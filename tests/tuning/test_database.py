"""Studies in PostgreSQL, on a temporary server that the tests start."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_study import ToyStudy

from iakd.errors import RunFailed, UserError
from iakd.tuning import storage
from iakd.tuning.results import finished_trials, load_study

pytest.importorskip("psycopg", reason="iakd[postgres] is not installed")
VERSIONS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
USER = "postgres"


def as_user(*command: str | Path) -> None:
    """Run one of the server's commands, which refuse to run as root."""
    account: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=60, cwd="/", **account)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return the address of a running server."""
    if not VERSIONS:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql")
    tools = VERSIONS[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a socket has 107 bytes
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    as_user(tools / "initdb", "-D", folder / "data", "-A", "trust", "-U", USER, "--no-sync", "-E", "UTF8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=50"
    control = (tools / "pg_ctl", "-D", folder / "data", "-w")
    as_user(*control, "-l", folder / "log", "-o", options, "start")
    try:
        yield f"postgresql+psycopg://{USER}@127.0.0.1:{port}/postgres"
    finally:
        as_user(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def database(server: str, tmp_path: Path) -> str:
    """Return the address of a new, empty database."""
    import psycopg

    name = f"study{abs(hash(tmp_path))}"
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return server.rpartition("/")[0] + f"/{name}"


def test_a_study_in_a_database_is_the_same_study(study: ToyStudy, database: str, expected: dict[str, Any]) -> None:
    """Although a worker is killed and the command fails halfway; afterwards a journal file has all of it."""
    Path("die-2").touch()
    Path("raise-8").write_text("ValueError: a bug")
    with pytest.raises(RunFailed, match="trial 8: ValueError: a bug"):
        study.run(storage=database, workers=2)
    Path("raise-8").unlink()
    study.run(storage=database, workers=1)
    assert study.outcome() == expected
    assert not (study.state / "study.journal").exists()
    trained = study.trained()
    assert sorted(set(trained)) == list(range(10))
    assert trained.count(2) == 2 and all(trained.count(number) == 1 for number in range(8) if number != 2)
    assert [trial.value for trial in load_study(study.results).trials] == [
        row["value"] for row in finished_trials(study.results)
    ]


def test_a_study_has_one_writer(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SECONDS_FOR_LOCK", 0.3)
    journal = tmp_path / "unused"
    with storage.open_study(database, journal, "one"):
        with storage.open_study(database, journal, "other"):
            pass
        with (
            pytest.raises(UserError, match="another process is running the study one"),
            storage.open_study(database, journal, "one"),
        ):
            pass
    with storage.open_study(database, journal, "one"):
        pass


def test_studies_may_start_on_an_empty_database_at_once(database: str, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from iakd.tuning.storage import open_study\n"
    code += "with open_study(sys.argv[1], Path('unused'), sys.argv[2]): pass"
    starts = [subprocess.Popen([sys.executable, "-c", code, database, name], cwd=tmp_path) for name in "abc"]
    assert [process.wait(timeout=60) for process in starts] == [0, 0, 0]


def test_an_unreachable_server_is_one_line(study: ToyStudy) -> None:
    with pytest.raises(
        UserError, match=r"tune\.storage: cannot reach postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/x: "
    ) as error:
        study.run(storage="postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_driver_is_one_line(study: ToyStudy) -> None:
    with pytest.raises(UserError, match=r"tune\.storage: .*postgresql\+psycopg://"):
        study.run(storage="postgresql+nonsense://host/x")

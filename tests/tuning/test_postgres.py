"""Studies in PostgreSQL, on a temporary server that the tests start."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_study import ToyStudy

from iakd.errors import RunFailed, UserError
from iakd.tuning import storage
from iakd.tuning.results import finished_trials, load_study

pytest.importorskip("psycopg", reason="iakd[postgres] is not installed")
SCRIPT = Path(__file__).parents[1] / "services/postgres.sh"


class Server:
    """A PostgreSQL that can crash."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a socket has 107 bytes
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.address = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def do(self, what: str) -> None:
        """Do as the script says: up, kill or down."""
        subprocess.run([SCRIPT, what, self.folder, self.port], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running server."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL in /usr/lib/postgresql")
    server = Server()
    server.do("up")
    try:
        yield server
    finally:
        server.do("down")
        shutil.rmtree(server.folder)


@pytest.fixture
def database(server: Server, tmp_path: Path) -> str:
    """Return the address of a new, empty database."""
    import psycopg

    name = f"study{abs(hash(tmp_path))}"
    with psycopg.connect(server.address.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return server.address.rpartition("/")[0] + f"/{name}"


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


def test_a_crash_of_the_server_loses_nothing(
    study: ToyStudy, server: Server, database: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone for a while, twice; a worker of another process has joined, another one comes meanwhile."""
    monkeypatch.setenv("EPOCH_SECONDS", "0.05")
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runs = subprocess.Popen(study.command(storage=database, workers=2), **options)
    joins = [subprocess.Popen(study.command(join=True, storage=database), **options)]
    try:
        for trained in (3, 7):
            while len(study.trained()) < trained:
                time.sleep(0.02)
            server.do("kill")
            joins.append(subprocess.Popen(study.command(join=True, storage=database), **options))
            time.sleep(1.5)
            server.do("up")
        printed, _ = runs.communicate(timeout=60)
    finally:
        server.do("up") if not (server.folder / "data/postmaster.pid").exists() else None
        for process in (runs, *joins):
            process.kill()
    assert runs.returncode == 0 and "trying again for ten minutes" in printed, printed
    assert study.outcome() == expected
    assert sorted(study.trained()) == list(range(10)), "no training was lost"
    assert [trial.number for trial in load_study(study.results).trials] == list(range(10))


def test_a_database_that_stays_away_is_one_line(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a connection that was cut by the server is not that: the study goes on."""
    import psycopg

    journal = Path("unused")
    with storage.open_study(database, journal, "one") as stored:
        with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() "
                "and datname = current_database()"
            )
        stored.set_attribute("key", "value")
        with (
            pytest.raises(UserError, match="another process is running the study one"),
            monkeypatch.context() as patch,
        ):
            patch.setattr(storage, "SECONDS_FOR_LOCK", 0.3)
            with storage.open_study(database, journal, "one"):
                pass  # it is locked again
    monkeypatch.setattr(storage, "SECONDS_OF_OUTAGE", 0.0)
    monkeypatch.setattr(storage, "SECONDS_FOR_LOCK", 0.3)
    with (
        pytest.raises(RunFailed, match=r"tune\.storage: the database failed \(.*\); run again and the study resumes"),
        storage.open_study(database, journal, "two") as stored,
    ):
        with psycopg.connect(server.address.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"alter database {database.rpartition('/')[2]} with allow_connections false")
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
                [database.rpartition("/")[2]],
            )
        stored.set_attribute("key", "value")


def test_a_connection_cut_in_the_middle_of_a_reading_is_made_again(database: str) -> None:
    """Where Optuna takes the failed query for too large a one, and asks once more in the same transaction."""
    import psycopg
    from sqlalchemy import Engine, event

    def cut(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM trial_intermediate_values" in statement and not cuts:
            cuts.append(statement)
            with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as other:
                other.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() "
                    "and datname = current_database()"
                )

    cuts: list[str] = []
    with storage.open_study(database, Path("unused"), "one") as stored:
        stored.add(0, {}, {}, "first")
        event.listen(Engine, "before_cursor_execute", cut)
        try:
            trials = stored.trials()
        finally:
            event.remove(Engine, "before_cursor_execute", cut)
        stored.set_attribute("key", "value")
    assert cuts and [trial.number for trial in trials] == [0]


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

"""Studies in PostgreSQL, on a throw-away server of the test's own."""

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
import studies
from studies import RESULTS, STATE, outcome, settings

from iakd.errors import UserError
from iakd.tuning.results import finished_trials, load_study

pytest.importorskip("psycopg", reason="iakd[postgres] is not installed")
VERSIONS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
USER = "postgres"


def as_user(*command: str | Path) -> None:
    """Run a command of the server, which refuses to run as root."""
    account: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=60, cwd="/", **account)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of a running server."""
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
    """Address of a new, empty database."""
    import psycopg

    name = f"study{abs(hash(tmp_path))}"
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return server.rpartition("/")[0] + f"/{name}"


def test_a_study_in_a_database_is_the_same_study(workplace: Path, database: str, expected: dict[str, Any]) -> None:
    """Although a worker is killed and the command fails halfway; afterwards a journal file has all of it."""
    Path("die-2").touch()
    Path("raise-8").touch()
    with pytest.raises(ZeroDivisionError):
        studies.run(settings(storage=database, workers=2))
    Path("raise-8").unlink()
    studies.run(settings(storage=database, workers=1))
    assert outcome() == expected
    assert not (STATE / "study.journal").exists()
    trained = [int(line.split()[0]) for line in Path("trainings.log").read_text().splitlines()]
    assert sorted(set(trained)) == list(range(10))
    assert trained.count(2) == 2 and all(trained.count(number) == 1 for number in range(8) if number != 2)
    assert [trial.value for trial in load_study(RESULTS).trials] == [row["value"] for row in finished_trials(RESULTS)]


def test_a_study_has_one_owner(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iakd.tuning import storage as module
    from iakd.tuning.shared_study import study_storage

    monkeypatch.setattr(module, "SECONDS_TO_LET_GO", 0.3)
    journal = tmp_path / "unused"
    with study_storage(database, journal, own="one"):
        with study_storage(database, journal, own="other"), study_storage(database, journal):
            pass  # other studies, and workers, are welcome
        with (
            pytest.raises(UserError, match="another process conducts the study one"),
            study_storage(database, journal, own="one"),
        ):
            pass
    with study_storage(database, journal, own="one"):
        pass


def test_studies_may_meet_in_an_empty_database(database: str, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from iakd.tuning.shared_study import study_storage\n"
    code += "with study_storage(sys.argv[1], Path('unused'), own=sys.argv[2]): pass"
    starts = [subprocess.Popen([sys.executable, "-c", code, database, name], cwd=tmp_path) for name in "abc"]
    assert [process.wait(timeout=60) for process in starts] == [0, 0, 0]


def test_an_unreachable_server_is_one_line(workplace: Path) -> None:
    with pytest.raises(
        UserError, match=r"tune\.storage: cannot reach postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/x: "
    ) as error:
        studies.run(settings(storage="postgresql+psycopg://me:secret@127.0.0.1:1/x"))
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_driver_is_one_line(workplace: Path) -> None:
    with pytest.raises(UserError, match=r"tune\.storage: .*postgresql\+psycopg://"):
        studies.run(settings(storage="postgresql+nonsense://host/x"))

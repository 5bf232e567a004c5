"""Studies that are killed: whatever ended them, and when, the same command goes on and ends in the same results."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import studies
from studies import RESULTS, STATE, outcome, settings

from iakd import files
from iakd.errors import RunFailed
from iakd.tuning import workers
from iakd.tuning.storage import open_journal


@contextmanager
def running(workers: int = 2, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The study as a command of its own, in its own process group; gone afterwards, with all its processes."""
    command = [sys.executable, studies.__file__, studies.as_text(settings(workers=workers))]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the background jobs of a shell ignore it
    )
    try:
        yield process
    finally:
        kill_group(process)
        process.communicate()


def kill_group(process: "subprocess.Popen[str]") -> None:
    """kill -9 of the command and all it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll; an assertion fails when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def trainings() -> int:
    """How many trainings began or went on so far."""
    log = Path("trainings.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """Processes of the study's workers."""
    found = []
    for pid in members(process.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "spawn_main" in command:
            found.append(pid)
    return found


def kill_at_random(choice: random.Random) -> None:
    """Start the study and kill all its processes, or the command alone, or a worker first, some times over."""
    for victim in ("all", "worker"):
        with started(choice) as study:
            time.sleep(choice.uniform(0.0, 0.9))
            if victim == "all":
                kill_group(study)
                continue
            if victim == "worker":
                for pid in workers_of(study)[:1]:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(choice.uniform(0.0, 0.3))
            os.kill(study.pid, signal.SIGKILL)
            with started(choice):  # while workers of the first may still be alive
                time.sleep(choice.uniform(0.0, 0.2))


@contextmanager
def started(choice: random.Random) -> Iterator["subprocess.Popen[str]"]:
    """A study that has begun to train since; other numbers of workers and hash seeds must not matter."""
    before = trainings()
    with running(choice.randint(1, 3), EPOCH_SECONDS="0.15", PYTHONHASHSEED=str(choice.randrange(99))) as study:
        wait_until(lambda: trainings() > before or study.poll() is not None)
        yield study


def test_kill_9_at_any_moment_changes_nothing(workplace: Path, expected: dict[str, Any]) -> None:
    kill_at_random(random.Random(0))
    assert not (RESULTS / "schedule.yaml").exists(), "it was too slow to be interrupted"
    with running(2, PYTHONHASHSEED="7") as study:
        _, log = study.communicate(timeout=120)
        assert study.returncode == 0, log
    assert outcome() == expected


def test_workers_do_not_outlive_a_killed_parent(workplace: Path) -> None:
    with running(2, EPOCH_SECONDS="30") as study:
        wait_until(lambda: trainings() >= 2)
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
        wait_until(lambda: not members(study.pid), seconds=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_soon(workplace: Path, number: int) -> None:
    """SIGINT goes to the whole group, as Ctrl-C on a terminal does, and here while workers are still importing."""
    with running(2, EPOCH_SECONDS="0.2") as study:
        wait_until(lambda: workers_of(study) if number == signal.SIGINT else trainings() >= 2)
        if number == signal.SIGINT:
            os.killpg(study.pid, number)
        else:
            os.kill(study.pid, number)
        since = time.monotonic()
        _, log = study.communicate(timeout=30)
        wait_until(lambda: not members(study.pid), seconds=5)
        assert time.monotonic() - since < 8  # two seconds of grace, and a busy machine
        assert study.returncode != 0
        assert log.count("Traceback") == 1, log  # the command line catches it; workers have nothing to say
    assert "KeyboardInterrupt" in files.read_json(STATE / "run.json", "")["error"]


def test_a_study_waits_until_no_worker_of_an_earlier_one_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "workers.lock"
    monkeypatch.setattr(workers, "SECONDS_FOR_ORPHANS", 0.2)
    with lock.open("a") as worker:
        fcntl.flock(worker, fcntl.LOCK_SH)
        with pytest.raises(RunFailed, match="workers of an earlier study are still alive"):
            workers.wait_for_orphans(lock)
    workers.wait_for_orphans(lock)


def test_a_worker_that_starts_too_late_does_nothing(workplace: Path) -> None:
    """Its parent was killed while it was still importing."""
    with running(1, EPOCH_SECONDS="0.2") as study:
        wait_until(lambda: workers_of(study))
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
        wait_until(lambda: not members(study.pid), seconds=20)
    assert trainings() == 0


def test_a_torn_journal_is_repaired(copied: Path, expected: dict[str, Any]) -> None:
    """As a full disk or a power cut may leave it; the outcomes that it lost are read back from the trials' files."""
    journal = RESULTS / "study.journal"
    content = journal.read_bytes()
    for cut in (content.index(b"\n") + 5, random.Random(0).randrange(len(content) // 2, len(content))):
        assert content[cut - 1 : cut] != b"\n"
        journal.write_bytes(content[:cut])
        (RESULTS / "run.json").unlink()
        studies.run(settings())
        assert outcome() == expected
        assert journal.read_bytes().count(b"\n") == content.count(b"\n")
    assert trainings() == 0


def test_a_writer_cuts_a_torn_line_before_it_writes(tmp_path: Path) -> None:
    """A worker that was killed while writing must not spoil what others write after it."""
    import optuna

    path = tmp_path / "study.journal"
    storage = open_journal(path)
    study = optuna.create_study(study_name="x", storage=storage)
    study.set_user_attr("a", 1)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"op_code": 2, "worker')
    study.set_user_attr("b", 2)
    assert path.read_bytes().startswith(whole + b'{"op_code"')
    assert optuna.load_study(study_name="x", storage=open_journal(path)).user_attrs == {"a": 1, "b": 2}

"""The follower and its launching: always one while there is work, none afterwards, never in a training's way."""

import contextlib
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trees
import yaml
from test_mirror import client, only, shown, values

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed
from iakd.experiment.jobs import STATE
from iakd.tracking import follow, launch, locks
from iakd.tracking.launch import finish
from iakd.tracking.mirror import Outcome
from iakd.tracking.place import FOLDER, Place, place_of
from iakd.tracking.scan import Found
from iakd.tracking.sync import sync

TRAINING = """
import sys, time
sys.path.insert(0, {here!r})
import trees
from pathlib import Path
from iakd.config import load
from iakd.tracking.launch import launch
launch(load(Path("params.yaml")))
with trees.student().open() as run:
    for epoch in range({first}, {last} + 1):
        trees.show(run, epoch)
        time.sleep(0.05)
    if {killed}:
        time.sleep(600)
    run.finish(trees.rows({last}), trees.metrics({last}))
"""


@pytest.fixture
def place(params: Params) -> Place:
    found = place_of(params)
    assert found
    found.folder.mkdir(parents=True)
    return found


def save(params: Params) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", exclude_unset=True)))


def training(first: int, last: int, killed: bool) -> subprocess.Popen[bytes]:
    code = TRAINING.format(here=str(Path(__file__).parent), first=first, last=last, killed=killed)
    return subprocess.Popen([sys.executable, "-c", code])


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def status(params: Params) -> str | None:
    runs = shown(params) if client(params).get_experiment_by_name("iakd-toy") else {}
    return next(iter(runs.values())).info.status if runs else None


def test_a_training_is_shown_live_though_it_is_killed_and_resumed(params: Params, place: Place) -> None:
    save(params)
    first = training(1, 6, killed=True)
    try:
        until(lambda: status(params) == "RUNNING" and len(values(params, only(params), "loss")) == 6)
    finally:
        first.kill()
        first.wait()
    until(lambda: status(params) == "KILLED", 20)
    assert training(4, 9, killed=False).wait() == 0
    trees.evaluated(trees.student(), 93.0)
    finish(params)
    assert status(params) == "FINISHED"
    assert [step for step, _ in values(params, only(params), "loss")] == list(range(1, 10))
    assert only(params).data.metrics["test_top1"] == 93.0
    assert not files.held(place.folder / locks.FOLLOWER)
    assert (FOLDER / launch.LOG).read_text() == ""


def test_a_deleted_database_is_rebuilt_by_two_at_once(tree: Path, settings: Callable[..., Params]) -> None:
    for seed in range(4):
        trees.complete(trees.student(seed))
        trees.evaluated(trees.student(seed), 90 + seed)
    save(settings())
    command = [sys.executable, "-m", "iakd", "track", "sync"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    lines = [process.communicate(timeout=100) for process in both]
    assert sorted(out for out, _ in lines) == [
        f"MLflow sqlite:///mlflow.db, experiment iakd-toy: 4 runs, {new} new\n" for new in (0, 4)
    ]
    assert [error for _, error in lines] == ["", ""]
    runs = shown(settings(uri=f"sqlite:///{tree}/mlflow.db"))
    assert sorted(run.data.metrics["test_top1"] for run in runs.values()) == [90, 91, 92, 93]


def test_launching_is_quick_and_imports_no_mlflow(params: Params) -> None:
    save(params)
    code = """
import time, sys
from pathlib import Path
from iakd.config import load
params = load(Path("params.yaml"))
from iakd.tracking import launch
launch.subprocess.Popen = lambda *a, **k: None  # what it starts is another test's matter
began = time.perf_counter()
launch.launch(params)
print(time.perf_counter() - began, "mlflow" in sys.modules, "sqlite3" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.split()
    assert float(seconds) < 0.25
    assert imported == ["False", "False"]


def test_the_follower_gets_the_settings_as_they_were_changed(
    params: Params, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iakd.config import load

    def note(command: list[str], env: dict[str, str], **_: Any) -> None:
        commands.append(command)
        assert "IAKD_WITH_PARENT" not in env  # it outlives the workflow that waits for it

    commands: list[list[str]] = []
    monkeypatch.setenv("IAKD_WITH_PARENT", "1")
    monkeypatch.setattr(subprocess, "Popen", note)
    launch.start(place, params)
    (command,) = commands
    assert command[:5] == [sys.executable, "-m", "iakd", "track", "follow"]
    assert load(Path(command[-1])) == params


@pytest.mark.parametrize("trouble", ["state is no folder", "no python", "no processes"])
def test_a_launch_that_fails_is_a_line_in_the_log(
    params: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    def no_processes(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    match trouble:
        case "state is no folder":
            STATE.write_text("")
        case "no python":
            monkeypatch.setattr(sys, "executable", str(Path("gone").resolve()))
        case "no processes":
            monkeypatch.setattr(subprocess, "Popen", no_processes)
    launch.launch(params)
    (record,) = caplog.records
    assert "iakd track sync" in record.message
    caplog.clear()
    finish(params, timeout=5)
    assert len(caplog.records) == 1


def test_tracking_that_is_off_does_nothing(tree: Path, settings: Callable[..., Params]) -> None:
    trees.complete(trees.student())
    before = sorted(tree.rglob("*"))
    off = settings(enabled=False)
    launch.launch(off)
    finish(off)
    follow.follow(off)
    assert "enabled: false" in sync(off)
    assert sorted(tree.rglob("*")) == before


def test_a_second_follower_ends_before_it_imports_mlflow(params: Params, place: Place) -> None:
    save(params)
    trees.complete(trees.student())
    files.write_text(Path("stub", "mlflow", "__init__.py"), "open('imported', 'w')")
    with files.exclusive(place.folder / locks.FOLLOWER, "held"):
        command = [sys.executable, "-m", "iakd", "track", "follow"]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "stub"}, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not Path("imported").exists()


def test_waiting_for_what_is_shown_already_costs_nothing(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.complete(trees.student())
    sync(params)
    started: list[int] = []
    monkeypatch.setattr(launch, "start", lambda *_: started.append(1) or pytest.skip())
    finish(params)
    assert not started
    trees.evaluated(trees.student(), 90.0)
    monkeypatch.setattr(launch, "start", lambda *_: started.append(1) or _ended())
    finish(params, timeout=5)
    assert len(started) == 1
    sync(params)
    finish(params, timeout=5)
    assert len(started) == 1
    Path("mlflow.db").unlink()
    finish(params, timeout=5)
    assert len(started) == 2


def _ended() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["true"])
    process.wait()
    return process


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_server_that_is_not_there_costs_seconds_and_one_line(
    tree: Path,
    settings: Callable[..., Params],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    scheme: str,
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    monkeypatch.setattr("iakd.tracking.place.ANSWER", 0.5)
    trees.complete(trees.student())
    before = sorted((tree / "results").rglob("*"))
    with silent_port() as silent:
        port = silent if kind == "silent" else closed_port()
        params = settings(uri=f"{scheme}://user:secret@127.0.0.1:{port}/x")
        began = time.monotonic()
        with pytest.raises(RunFailed, match=r"does not answer|timeout expired") as failure:
            sync(params)
        assert time.monotonic() - began < 10
        assert "secret" not in str(failure.value)
        caplog.set_level(logging.WARNING)
        for wait in (finish, follow.follow) if "does not answer" in str(failure.value) else (follow.follow,):
            caplog.clear()
            began = time.monotonic()
            wait(params)
            assert time.monotonic() - began < 10
            assert len(caplog.records) == 1
    assert "mlflow" not in repr(sorted((tree / "results").rglob("*"))[len(before) :])
    assert sorted((tree / "results").rglob("*")) == before


class Idle:
    """A mirror that has nobody to tell."""

    store = None
    calls = 0

    def __init__(self, place: Place) -> None:
        self.place = place

    def bring(self, found: list[Any], patience: float) -> Outcome:
        type(self).calls += 1
        return Outcome(len(found), 0, 0, True)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers without MLflow that poll and end within milliseconds."""
    monkeypatch.setattr(follow, "Mirror", Idle)
    monkeypatch.setattr(follow, "POLL", 0.005)
    monkeypatch.setattr(follow, "LINGER", 0.02)
    monkeypatch.setattr(os, "nice", lambda _: 0)
    monkeypatch.setattr(launch, "_at_work", [])


def test_a_follower_stays_while_a_command_is_at_work(params: Params, place: Place, fast: None) -> None:
    with (place.folder / locks.FOLLOWER).open("a"):
        users = locks.share(place.folder / locks.USERS)
    assert users
    follower = threading.Thread(target=follow.follow, args=[params])
    follower.start()
    follower.join(0.5)
    assert follower.is_alive()
    users.close()
    follower.join(5)
    assert not follower.is_alive()


def test_a_command_that_joins_at_the_last_moment_keeps_the_follower(
    params: Params, place: Place, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = locks.share(place.folder / locks.USERS)
    assert users
    monkeypatch.setattr(locks, "shared", lambda _: False)  # it joined after the follower had looked
    follower = threading.Thread(target=follow.follow, args=[params])
    follower.start()
    follower.join(0.5)
    assert follower.is_alive()
    users.close()
    follower.join(5)
    assert not follower.is_alive()


def test_a_follower_stays_while_a_run_is_live(params: Params, place: Place, fast: None) -> None:
    with trees.student().open():
        follower = threading.Thread(target=follow.follow, args=[params])
        follower.start()
        follower.join(0.5)
        assert follower.is_alive()
    follower.join(5)
    assert not follower.is_alive()


def test_a_follower_that_is_waited_for_ends_at_once(
    params: Params, place: Place, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LINGER", 600)
    follower = threading.Thread(target=follow.follow, args=[params])
    follower.start()
    until(lambda: files.held(place.folder / locks.FOLLOWER))
    flush = locks.share(place.folder / locks.FLUSH)
    assert flush
    follower.join(5)
    flush.close()
    assert not follower.is_alive()


def test_who_shows_much_rests_long_unless_somebody_waits(
    params: Params, place: Place, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring(self: Idle, found: list[Found], patience: float) -> Outcome:
        calls.append(found)
        time.sleep(0.1)  # a fiftieth of the rest that follows
        return Outcome(len(found), 0, 0, True)

    calls: list[list[Found]] = []
    monkeypatch.setattr(Idle, "bring", bring)
    monkeypatch.setattr(follow, "LINGER", 600)
    trees.complete(trees.teacher())
    follower = threading.Thread(target=follow.follow, args=[params])
    follower.start()
    until(lambda: len(calls) == 1)
    trees.complete(trees.student())
    time.sleep(1)
    assert len(calls) == 1
    flush = locks.share(place.folder / locks.FLUSH)
    assert flush
    follower.join(3)
    flush.close()
    assert not follower.is_alive()
    assert len(calls) == 2


def test_a_launch_while_the_follower_ends_starts_another(
    params: Params, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(launch, "start", lambda *_: started.append(1))
    with files.exclusive(place.folder / locks.FOLLOWER, "held"):
        users = locks.alone(place.folder / locks.USERS)  # it has decided to end
        launcher = threading.Thread(target=launch.launch, args=[params])
        launcher.start()
        time.sleep(0.05)
        assert not started
    assert users
    users.close()
    launcher.join(5)
    assert started


def test_no_work_is_ever_left_without_a_follower(
    params: Params, place: Place, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def start(*_: Any) -> None:
        threads.append(threading.Thread(target=follow.follow, args=[params]))
        threads[-1].start()

    monkeypatch.setattr(launch, "start", start)
    problems: list[str] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(15):
            time.sleep(draw.uniform(0, 0.06))
            mine: list[Any] = []
            users = locks.share(place.folder / locks.USERS)  # as `launch` does it, with a lock of its own
            mine.append(users)
            if not files.held(place.folder / locks.FOLLOWER):
                start()
            deadline = time.monotonic() + 5
            while not files.held(place.folder / locks.FOLLOWER) and time.monotonic() < deadline:
                time.sleep(0.001)
            end = time.monotonic() + draw.uniform(0, 0.06)
            while time.monotonic() < end:
                if not files.held(place.folder / locks.FOLLOWER):
                    problems.append(f"worker {seed} is alone")
                time.sleep(0.002)
            if users:
                users.close()

    workers = [threading.Thread(target=work, args=[seed]) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert not problems


def test_a_tree_that_is_deleted_ends_its_follower(params: Params, place: Place, fast: None, tree: Path) -> None:
    users = locks.share(place.folder / locks.USERS)
    follower = threading.Thread(target=follow.follow, args=[params])
    follower.start()
    until(lambda: files.held(place.folder / locks.FOLLOWER))
    shutil.rmtree(STATE)
    follower.join(5)
    assert not follower.is_alive()
    assert not STATE.exists()
    assert users
    users.close()


@pytest.mark.parametrize("work", ["a live run", "a command that prepares", "nothing"])
def test_an_mlflow_that_fails_is_tried_again_while_there_is_work(
    params: Params,
    place: Place,
    fast: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    work: str,
) -> None:
    class Failing(Idle):
        def bring(self, found: list[Any], patience: float) -> Outcome:
            attempts.append(time.monotonic())
            raise RunFailed("MLflow is down")

    attempts: list[float] = []
    monkeypatch.setattr(follow, "Mirror", Failing)
    monkeypatch.setattr(follow, "WAITS", (0.01, 0.02))
    trees.complete(trees.teacher())
    with contextlib.ExitStack() as stack:
        if work == "a live run":
            stack.enter_context(trees.student().open())
        elif work == "a command that prepares":
            users = locks.share(place.folder / locks.USERS)
            assert users
            stack.enter_context(users)
        follow.follow(params)
    assert len(attempts) == (1 if work == "nothing" else 3)
    assert [record.message for record in caplog.records] == ["MLflow is down"]


def test_probing_a_lock_never_fails_a_training(tree: Path) -> None:
    run = trees.student()
    trees.killed(run, 1)
    probing = locks.share(STATE / run.path / "lock")  # as `files.held` does, by a process that is slow
    assert probing
    threading.Timer(0.1, probing.close).start()
    with run.open():
        assert files.held(STATE / run.path / "lock")

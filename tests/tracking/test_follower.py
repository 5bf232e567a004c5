"""The follower: always one while anything is training, none afterwards, and never in a training's way."""

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
from typing import IO, Any

import fake_runs
import pytest
import yaml
from mlflow_view import MlflowView

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed
from iakd.experiment.jobs import STATE
from iakd.tracking import follower, mirror
from iakd.tracking.address import TRACKING_STATE, MlflowAddress, tracking_address
from iakd.tracking.follower import FLUSH_LOCK, FOLLOWER_LOCK, USERS_LOCK
from iakd.tracking.mirror import MirrorSummary, sync
from iakd.tracking.plan import Plan
from iakd.tracking.scan import RunFiles

TRAINING = """
import sys, time
sys.path.insert(0, {here!r})
import fake_runs
from pathlib import Path
from iakd.config import load
from iakd.tracking.follower import ensure_follower
ensure_follower(load(Path("params.yaml")))
with fake_runs.student().open() as run:
    for epoch in range({first}, {last} + 1):
        fake_runs.write_history(run, epoch)
        time.sleep(0.05)
    if {killed}:
        time.sleep(600)
    run.finish(fake_runs.history({last}), fake_runs.metrics({last}))
"""


PATIENCE = 60  # seconds that a thread may take, however busy the machine is


@pytest.fixture(autouse=True)
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower in this process must not lower the priority of all tests after it."""
    monkeypatch.setattr(os, "nice", lambda _: 0)


@pytest.fixture
def address(params: Params) -> MlflowAddress:
    found = tracking_address(params)
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
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def status(view: MlflowView) -> str | None:
    runs = view.runs()
    return next(iter(runs.values())).info.status if runs else None


def test_a_training_is_shown_live_though_it_is_killed_and_resumed(
    params: Params, view: MlflowView, address: MlflowAddress
) -> None:
    save(params)
    first = training(1, 6, killed=True)
    try:
        until(lambda: status(view) == "RUNNING" and len(view.values(view.only_run(), "loss")) == 6)
    finally:
        first.kill()
        first.wait()
    until(lambda: status(view) == "KILLED", 20)
    assert training(4, 9, killed=False).wait() == 0
    fake_runs.evaluate(fake_runs.student(), 93.0)
    follower.wait_for_follower(params)
    assert status(view) == "FINISHED"
    assert [step for step, _ in view.values(view.only_run(), "loss")] == list(range(1, 10))
    assert view.only_run().data.metrics["test_top1"] == 93.0
    assert not files.held(address.folder / FOLLOWER_LOCK)
    assert (TRACKING_STATE / follower.LOG).read_text() == ""


def test_a_workflow_has_the_follower_stay_until_it_waits_for_it(
    params: Params, view: MlflowView, address: MlflowAddress
) -> None:
    save(params)
    follower.ensure_follower(params)
    fake_runs.train(fake_runs.student())
    until(lambda: status(view) == "FINISHED")
    time.sleep(follower.LINGER + 2)  # nothing trains any more, as while a report is written
    assert files.held(address.folder / FOLLOWER_LOCK)
    fake_runs.evaluate(fake_runs.student(), 93.0)
    follower.wait_for_follower(params)
    assert view.only_run().data.metrics["test_top1"] == 93.0
    assert not files.held(address.folder / FOLLOWER_LOCK)


def test_a_deleted_database_is_rebuilt_by_two_at_once(tree: Path, settings: Callable[..., Params]) -> None:
    for seed in range(4):
        fake_runs.train(fake_runs.student(seed))
        fake_runs.evaluate(fake_runs.student(seed), 90 + seed)
    save(settings())
    command = [sys.executable, "-m", "iakd", "track", "sync"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    lines = [process.communicate(timeout=100) for process in both]
    assert sorted(out for out, _ in lines) == [
        f"MLflow sqlite:///mlflow.db, experiment iakd-toy: 4 runs, {new} new\n" for new in (0, 4)
    ]
    assert [error for _, error in lines] == ["", ""]
    runs = MlflowView(settings(uri=f"sqlite:///{tree}/mlflow.db")).runs()
    assert sorted(run.data.metrics["test_top1"] for run in runs.values()) == [90, 91, 92, 93]


def test_starting_the_follower_is_quick_and_imports_no_mlflow(params: Params) -> None:
    save(params)
    code = """
import time, sys
from pathlib import Path
from iakd.config import load
params = load(Path("params.yaml"))
from iakd.tracking import follower, mirror
follower.subprocess.Popen = lambda *a, **k: None  # another test checks what it starts
began = time.perf_counter()
follower.ensure_follower(params)
print(time.perf_counter() - began, "mlflow" in sys.modules, "sqlite3" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.split()
    assert float(seconds) < 0.25
    assert imported == ["False", "False"]


def test_the_follower_gets_the_settings_as_they_were_changed(
    params: Params, address: MlflowAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iakd.config import load

    def note(command: list[str], env: dict[str, str], **_: Any) -> None:
        commands.append(command)
        assert "IAKD_WITH_PARENT" not in env  # it outlives the workflow that waits for it

    commands: list[list[str]] = []
    monkeypatch.setenv("IAKD_WITH_PARENT", "1")
    monkeypatch.setattr(subprocess, "Popen", note)
    follower.start_follower(address, params)
    (command,) = commands
    assert command[:5] == [sys.executable, "-m", "iakd", "track", "follow"]
    assert load(Path(command[-1])) == params


@pytest.mark.parametrize("trouble", ["state is a file", "no python", "no processes"])
def test_a_start_that_fails_is_a_line_in_the_log(
    params: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    def no_processes(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    match trouble:
        case "state is a file":
            STATE.write_text("")
        case "no python":
            monkeypatch.setattr(sys, "executable", str(Path("gone").resolve()))
        case "no processes":
            monkeypatch.setattr(subprocess, "Popen", no_processes)
    follower.ensure_follower(params)
    (record,) = caplog.records
    assert "iakd track sync" in record.message
    caplog.clear()
    follower.wait_for_follower(params, timeout=5)
    assert len(caplog.records) == 1


def test_tracking_that_is_off_does_nothing(tree: Path, settings: Callable[..., Params]) -> None:
    fake_runs.train(fake_runs.student())
    before = sorted(tree.rglob("*"))
    off = settings(enabled=False)
    follower.ensure_follower(off)
    follower.wait_for_follower(off)
    follower.follow(off)
    assert "enabled: false" in sync(off)
    assert sorted(tree.rglob("*")) == before


def test_a_second_follower_ends_before_it_imports_mlflow(params: Params, address: MlflowAddress) -> None:
    save(params)
    fake_runs.train(fake_runs.student())
    files.write_text(Path("stub", "mlflow", "__init__.py"), "open('imported', 'w')")
    with files.exclusive(address.folder / FOLLOWER_LOCK, "held"):
        command = [sys.executable, "-m", "iakd", "track", "follow"]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "stub"}, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not Path("imported").exists()


def test_waiting_returns_at_once_if_mlflow_is_up_to_date(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runs.train(fake_runs.student())
    sync(params)
    started: list[int] = []
    monkeypatch.setattr(follower, "start_follower", lambda *_: started.append(1) or pytest.skip())
    follower.wait_for_follower(params)
    assert not started
    fake_runs.evaluate(fake_runs.student(), 90.0)
    monkeypatch.setattr(follower, "start_follower", lambda *_: started.append(1) or _ended())
    follower.wait_for_follower(params, timeout=5)
    assert len(started) == 1
    sync(params)
    follower.wait_for_follower(params, timeout=5)
    assert len(started) == 1
    Path("mlflow.db").unlink()
    follower.wait_for_follower(params, timeout=5)
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
def test_an_unreachable_server_costs_seconds_and_one_line(
    tree: Path,
    settings: Callable[..., Params],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    scheme: str,
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    monkeypatch.setattr("iakd.tracking.address.ANSWER_TIMEOUT", 0.5)
    fake_runs.train(fake_runs.student())
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
        for wait in (
            (follower.wait_for_follower, follower.follow)
            if "does not answer" in str(failure.value)
            else (follower.follow,)
        ):
            caplog.clear()
            began = time.monotonic()
            wait(params)
            assert time.monotonic() - began < 10
            assert len(caplog.records) == 1
    assert "mlflow" not in repr(sorted((tree / "results").rglob("*"))[len(before) :])
    assert sorted((tree / "results").rglob("*")) == before


class Idle:
    """A mirror without MLflow."""

    store = None
    runs = None
    calls = 0

    def __init__(self, address: MlflowAddress, plan: Plan) -> None:
        self.address = address
        self.plan = plan

    def update(self, found: list[Any], timeout: float) -> MirrorSummary:
        type(self).calls += 1
        return MirrorSummary(len(found), 0, 0, True)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers without MLflow that poll and end within milliseconds."""
    monkeypatch.setattr(mirror, "Mirror", Idle)
    monkeypatch.setattr(follower, "POLL", 0.005)
    monkeypatch.setattr(follower, "LINGER", 0.02)
    monkeypatch.setattr(follower, "MAX_PAUSE", 0.02)


def assert_it_stays_until_closed(users: IO[str], params: Params) -> None:
    """A follower lives as long as the lock of a command that uses it, and ends soon after."""
    thread = threading.Thread(target=follower.follow, args=[params])
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    users.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_follower_stays_while_a_command_is_at_work(params: Params, address: MlflowAddress, fast: None) -> None:
    with (address.folder / FOLLOWER_LOCK).open("a"):
        users = files.try_lock(address.folder / USERS_LOCK, shared=True, patience=1.0)
    assert users
    assert_it_stays_until_closed(users, params)


def test_a_command_that_joins_at_the_last_moment_keeps_the_follower(
    params: Params, address: MlflowAddress, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = files.try_lock(address.folder / USERS_LOCK, shared=True, patience=1.0)
    assert users
    monkeypatch.setattr(files, "in_use", lambda _: False)  # it joined after the follower had looked
    assert_it_stays_until_closed(users, params)


def test_a_follower_stays_while_a_run_is_live(params: Params, address: MlflowAddress, fast: None) -> None:
    with fake_runs.student().open():
        thread = threading.Thread(target=follower.follow, args=[params])
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_follower_ends_at_once_if_a_process_waits_for_it(
    params: Params, address: MlflowAddress, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LINGER", 600)
    thread = threading.Thread(target=follower.follow, args=[params])
    thread.start()
    until(lambda: files.held(address.folder / FOLLOWER_LOCK))
    flush = files.try_lock(address.folder / FLUSH_LOCK, shared=True, patience=1.0)
    assert flush
    thread.join(PATIENCE)
    flush.close()
    assert not thread.is_alive()


def test_a_busy_follower_pauses_for_long_unless_a_process_waits_for_it(
    params: Params, address: MlflowAddress, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(self: Idle, found: list[RunFiles], timeout: float) -> MirrorSummary:
        calls.append(found)
        time.sleep(0.1)  # a fiftieth of the pause that follows, five seconds
        return MirrorSummary(len(found), 0, 0, True)

    calls: list[list[RunFiles]] = []
    monkeypatch.setattr(Idle, "update", update)
    for name in ("LINGER", "MAX_PAUSE"):
        monkeypatch.setattr(follower, name, 600)
    fake_runs.train(fake_runs.teacher())
    thread = threading.Thread(target=follower.follow, args=[params])
    thread.start()
    until(lambda: len(calls) == 1)
    fake_runs.train(fake_runs.student())
    time.sleep(1)
    assert len(calls) == 1
    flush = files.try_lock(address.folder / FLUSH_LOCK, shared=True, patience=1.0)
    assert flush
    thread.join(PATIENCE)
    flush.close()
    assert not thread.is_alive()
    assert len(calls) == 2


def test_a_command_that_starts_while_the_follower_ends_starts_another(
    params: Params, address: MlflowAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(follower, "start_follower", lambda *_: started.append(1))
    with files.exclusive(address.folder / FOLLOWER_LOCK, "held"):
        users = files.try_lock(address.folder / USERS_LOCK)  # it has decided to end
        launcher = threading.Thread(target=follower.ensure_follower, args=[params])
        launcher.start()
        time.sleep(0.05)
        assert not started
    assert users
    users.close()
    launcher.join(5)
    assert started


def test_no_work_is_ever_left_without_a_follower(
    params: Params, address: MlflowAddress, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def start(*_: Any) -> None:
        threads.append(threading.Thread(target=follower.follow, args=[params]))
        threads[-1].start()

    monkeypatch.setattr(follower, "start_follower", start)
    problems: list[str] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(15):
            time.sleep(draw.uniform(0, 0.06))
            users = files.try_lock(address.folder / USERS_LOCK, shared=True, patience=1.0)  # as `ensure_follower` does
            if not files.held(address.folder / FOLLOWER_LOCK):
                start()
            deadline = time.monotonic() + 5
            while not files.held(address.folder / FOLLOWER_LOCK) and time.monotonic() < deadline:
                time.sleep(0.001)
            end = time.monotonic() + draw.uniform(0, 0.06)
            while time.monotonic() < end:
                if not files.held(address.folder / FOLLOWER_LOCK):
                    problems.append(f"worker {seed} has no follower")
                time.sleep(0.002)
            if users:
                users.close()

    workers = [threading.Thread(target=work, args=[seed]) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not problems


def test_a_follower_ends_if_its_tree_is_deleted(params: Params, address: MlflowAddress, fast: None, tree: Path) -> None:
    users = files.try_lock(address.folder / USERS_LOCK, shared=True, patience=1.0)
    thread = threading.Thread(target=follower.follow, args=[params])
    thread.start()
    until(lambda: files.held(address.folder / FOLLOWER_LOCK))
    while STATE.exists():  # the follower may be writing a file into a folder that is just being removed
        shutil.rmtree(STATE, ignore_errors=True)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not STATE.exists()
    assert users
    users.close()


@pytest.mark.parametrize("work", ["a live run", "a command that prepares", "nothing"])
def test_a_failing_mlflow_is_retried_while_anything_is_training(
    params: Params,
    address: MlflowAddress,
    fast: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    work: str,
) -> None:
    class Failing(Idle):
        def update(self, found: list[Any], timeout: float) -> MirrorSummary:
            attempts.append(time.monotonic())
            if len(attempts) <= 6:  # for longer than all delays
                raise RunFailed("MLflow is down")
            return super().update(found, timeout)

    attempts: list[float] = []
    monkeypatch.setattr(mirror, "Mirror", Failing)
    monkeypatch.setattr(follower, "RETRY_DELAYS", (0.01, 0.02))
    fake_runs.train(fake_runs.teacher())
    with contextlib.ExitStack() as stack:
        if work == "a live run":
            stack.enter_context(fake_runs.student().open())
        elif work == "a command that prepares":
            users = files.try_lock(address.folder / USERS_LOCK, shared=True, patience=1.0)
            assert users
            stack.enter_context(users)
        thread = threading.Thread(target=follower.follow, args=[params])
        thread.start()
        if work != "nothing":
            until(lambda: len(attempts) == 7)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert (len(attempts) == 1) == (work == "nothing")
    assert [record.message for record in caplog.records] == ["MLflow is down"]


def test_probing_a_lock_never_fails_a_training(tree: Path) -> None:
    run = fake_runs.student()
    fake_runs.kill(run, 1)
    probing = files.try_lock(
        STATE / run.path / "lock", shared=True, patience=1.0
    )  # as `files.held` does, by a process that is slow
    assert probing
    threading.Timer(0.1, probing.close).start()
    with run.open():
        assert files.held(STATE / run.path / "lock")

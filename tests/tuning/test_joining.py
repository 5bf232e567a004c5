"""Processes that join a study, come and go, and are killed: its outcome is that of one worker on its own."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_study import ToyStudy

from iakd import files
from iakd.errors import RunFailed, UserError
from iakd.tuning import joining

ENDED = re.compile(r"trial (\d+) (?:complete|pruned|failed)$", re.MULTILINE)  # as one that joined says it
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(study: ToyStudy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """`start(join=True)`: a process that joins the study; with False, one that runs it."""
    monkeypatch.setenv("EPOCH_SECONDS", "0.03")
    processes: list[subprocess.Popen[str]] = []

    def start(join: bool, **changes: Any) -> "subprocess.Popen[str]":
        command = study.command(join, workers=1, **changes)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def trials_of(process: "subprocess.Popen[str]") -> set[int]:
    """The trials that a process which joined has trained to the end."""
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    return {int(number) for number in ENDED.findall(printed)}


def test_workers_come_and_go(study: ToyStudy, start: Start, expected: dict[str, Any]) -> None:
    """One waits before the study starts, one is killed in a trial, one comes late."""
    early, killed = start(join=True), start(join=True)
    runs = start(join=False)
    wait_for(lambda: len(study.trained()) > 3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    late = start(join=True)
    assert runs.wait(timeout=60) == 0
    assert study.outcome() == expected
    by_others = trials_of(early) | trials_of(late)
    assert by_others and by_others <= set(range(10))
    assert len(study.trained()) - 10 <= 1, "only the killed one's trial has been resumed"


def test_those_that_joined_wait_for_a_study_that_was_killed(
    study: ToyStudy, start: Start, expected: dict[str, Any]
) -> None:
    joined, killed = start(join=True), start(join=False)
    wait_for(lambda: len(study.trained()) > 4)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert joined.poll() is None
    assert start(join=False).wait(timeout=60) == 0
    assert study.outcome() == expected
    assert trials_of(joined)


def test_a_trial_that_fails_or_is_pruned_elsewhere_is_the_same(study: ToyStudy, start: Start) -> None:
    Path("diverge-1").touch()
    study.run(workers=1)
    alone = study.outcome()
    assert {row["state"] for row in alone["rows"]} == {"complete", "pruned", "failed"}
    shutil.rmtree(study.results)
    shutil.rmtree(study.state)
    Path("trainings.log").unlink()
    joined = [start(join=True), start(join=True)]
    assert start(join=False).wait(timeout=60) == 0
    assert study.outcome() == alone
    assert set.union(*map(trials_of, joined))


def test_other_settings_are_refused_in_one_line(study: ToyStudy, start: Start) -> None:
    start(join=False)
    wait_for(lambda: len(study.trained()) > 0)
    with pytest.raises(UserError, match="runs this study with other settings, data or sources; join with those"):
        study.run(join=True, seed=7)


def test_waiting_ends_where_nobody_runs_the_study(study: ToyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SECONDS_WITHOUT_STUDY", 0.0)
    with pytest.raises(RunFailed, match="nobody runs this study; start `iakd tune` without --join, too"):
        study.run(join=True)


def test_a_file_system_without_locks_is_refused(study: ToyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone would train everything."""
    monkeypatch.setattr(files, "can_lock", lambda path: False)
    with pytest.raises(UserError, match="has no locks, which joining a study needs"):
        study.run(join=True)


def test_a_finished_study_has_nothing_to_join(copied: ToyStudy) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.results.rglob("*")}
    copied.run(join=True)
    assert {path: path.stat().st_mtime_ns for path in copied.results.rglob("*")} == before
    assert not Path("trainings.log").exists()

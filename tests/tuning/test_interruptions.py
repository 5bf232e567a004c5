"""Studies that are killed: however and whenever that happens, the same command resumes and gives the same results."""

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
import toy_study
from toy_study import ToyStudy

from iakd import files
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import plan_experiment
from iakd.experiment.run_dir import Run
from iakd.processes import FORK_SERVER
from iakd.tuning import workers
from iakd.tuning.results import load_study, up_to_date
from iakd.tuning.storage import open_study


@contextmanager
def running(study: ToyStudy, workers: int = 2, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run the study as a command in its own process group; at the end kill all its processes."""
    process = subprocess.Popen(
        study.command(workers=workers),
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
    """Kill -9 the command and all processes that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
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
    """Poll the condition; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.01)


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """Return the process ids of the study's workers, which it has spawned itself."""
    found = []
    for pid in members(process.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "spawn_main" in command:
            found.append(pid)
    return found


@pytest.fixture
def server(study: ToyStudy, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    """A fork server for the commands of the study."""
    code = "import pathlib, toy_study, iakd.orchestration.fork_server as f; f.serve(pathlib.Path('socket'), ())"
    environment = {**os.environ, "PYTHONPATH": str(Path(toy_study.__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, start_new_session=True)
    wait_until(Path("socket").exists)
    monkeypatch.setenv(FORK_SERVER, "socket")
    yield process
    process.kill()
    process.wait()


def forked_workers(server: "subprocess.Popen[str]") -> list[int]:
    """Return the process ids of the workers that run in the fork server."""
    return [pid for pid in members(server.pid) if pid != server.pid]


def kill_at_random(study: ToyStudy, choice: random.Random) -> None:
    """Start the study several times and kill all its processes, or a worker and then the command alone."""
    for victim in ("all", "worker"):
        with started(study, choice) as command:
            time.sleep(choice.uniform(0.0, 0.9))
            if victim == "all":
                kill_group(command)
                continue
            if victim == "worker":
                for pid in workers_of(command)[:1]:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(choice.uniform(0.0, 0.3))
            os.kill(command.pid, signal.SIGKILL)
            with started(study, choice):  # while workers of the first may still be alive
                time.sleep(choice.uniform(0.0, 0.2))


@contextmanager
def started(study: ToyStudy, choice: random.Random) -> Iterator["subprocess.Popen[str]"]:
    """Start the study and wait for a training; the number of workers and the hash seed must not matter."""
    before = len(study.started())
    with running(
        study, choice.randint(1, 3), EPOCH_SECONDS="0.15", PYTHONHASHSEED=str(choice.randrange(99))
    ) as command:
        wait_until(lambda: len(study.started()) > before or command.poll() is not None)
        yield command


def test_kill_9_at_any_moment_changes_nothing(study: ToyStudy, expected: dict[str, Any]) -> None:
    kill_at_random(study, random.Random(0))
    assert not (study.results / "best.yaml").exists(), "it was too slow to be interrupted"
    with running(study, 2, PYTHONHASHSEED="7") as command:
        _, log = command.communicate(timeout=120)
        assert command.returncode == 0, log
    assert study.outcome() == expected


def test_kill_9_of_workers_in_the_fork_server_of_their_study_or_of_the_server(
    study: ToyStudy, expected: dict[str, Any], server: "subprocess.Popen[str]"
) -> None:
    with running(study, 2, EPOCH_SECONDS="0.1") as command:
        wait_until(lambda: len(study.started()) > 1)
        assert len(forked_workers(server)) == 2 and not workers_of(command)
        os.kill(forked_workers(server)[0], signal.SIGKILL)
        wait_until(lambda: len(study.started()) > 2)
        assert command.poll() is None, "one worker more does its work"
        wait_until(lambda: len(forked_workers(server)) == 2)
        os.kill(command.pid, signal.SIGKILL)
        wait_until(lambda: not forked_workers(server), seconds=5)
    with running(study, 2, EPOCH_SECONDS="0.1") as command:
        before = len(study.started())
        wait_until(lambda: len(study.started()) > before)
        assert forked_workers(server)
        server.kill()
        wait_until(lambda: workers_of(command) or command.poll() is not None)
        assert command.poll() is None, "it was too slow to be interrupted"
        _, log = command.communicate(timeout=120)
        assert command.returncode == 0, log
    assert study.outcome() == expected


def test_a_stopped_study_stops_its_workers_in_the_fork_server(study: ToyStudy, server: "subprocess.Popen[str]") -> None:
    with running(study, 2, EPOCH_SECONDS="0.3") as command:
        wait_until(lambda: len(study.started()) > 1)
        os.kill(command.pid, signal.SIGTERM)
        _, log = command.communicate(timeout=30)
        assert command.returncode != 0
        assert log.count("Traceback") == 1, log
        wait_until(lambda: not forked_workers(server), seconds=5)
    assert "KeyboardInterrupt" in files.read_json(study.state / "run.json", "")["error"]


def test_a_trial_resumes_in_the_middle_of_its_second_seed(study: ToyStudy, expected: dict[str, Any]) -> None:
    """Its first seed is read back, not trained again."""
    Path("die-0-seed1").touch()
    with running(study, 1) as command:
        _, log = command.communicate(timeout=120)
        assert command.returncode == 0, log
    assert study.outcome() == expected
    lines = [line for line in Path("trainings.log").read_text().splitlines() if line.startswith("0 ")]
    assert lines == ["0 0 0", "0 1 0", "0 1 4"], "the second seed resumes from its checkpoint"


def test_workers_do_not_outlive_a_killed_parent(study: ToyStudy) -> None:
    with running(study, 2, EPOCH_SECONDS="30") as command:
        wait_until(lambda: len(study.trained()) >= 2)
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
        wait_until(lambda: not members(command.pid), seconds=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_soon(study: ToyStudy, number: int) -> None:
    """SIGINT goes to the whole group, as Ctrl-C on a terminal does, and here while workers are still importing."""
    with running(study, 2, EPOCH_SECONDS="0.2") as command:
        wait_until(lambda: workers_of(command) if number == signal.SIGINT else len(study.trained()) >= 2)
        if number == signal.SIGINT:
            os.killpg(command.pid, number)
        else:
            os.kill(command.pid, number)
        since = time.monotonic()
        _, log = command.communicate(timeout=30)
        wait_until(lambda: not members(command.pid), seconds=5)
        assert time.monotonic() - since < 8  # two seconds of grace, and a busy machine
        assert command.returncode != 0
        assert log.count("Traceback") == 1, log  # the command line would catch it; workers are silent
    assert "KeyboardInterrupt" in files.read_json(study.state / "run.json", "")["error"]


def test_a_trial_that_waits_for_an_answer_saves_its_checkpoint(study: ToyStudy) -> None:
    """The study ends when it was asked whether to prune, before it has answered."""

    class FailingStudy:
        def start(self, number: int) -> dict[str, Any]:
            return {"iakd.schedule.kind": "uniform"}

        def should_prune(self, number: int, step: int, value: float) -> bool:
            raise RunFailed("the database failed")

    experiment = plan_experiment(toy_study.settings())
    job = experiment.studies[0]
    job.state.mkdir(parents=True)
    task = workers.WorkerTask(experiment, job, "key", toy_study.SavingTrainer)
    with pytest.raises(RunFailed, match="the database failed"), workers.Pool(task, FailingStudy(), 1) as pool:
        list(pool.run([0]))
    assert Path("saved").read_text() == "SIGTERM"


def test_a_study_waits_until_no_worker_of_an_earlier_one_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "workers.lock"
    monkeypatch.setattr(workers, "SECONDS_FOR_ORPHANS", 0.2)
    with (
        files.lock(lock, shared=True),
        pytest.raises(RunFailed, match="workers of an earlier study are still alive"),
    ):
        workers.wait_for_orphans(lock)
    workers.wait_for_orphans(lock)


def test_a_worker_that_starts_too_late_does_nothing(study: ToyStudy) -> None:
    """Its parent was killed while it was still importing."""
    with running(study, 1, EPOCH_SECONDS="0.2") as command:
        wait_until(lambda: workers_of(command))
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
        wait_until(lambda: not members(command.pid), seconds=20)
    assert study.trained() == []


def test_a_torn_journal_is_repaired(copied: ToyStudy, expected: dict[str, Any]) -> None:
    """A full disk or a power cut may tear it; results that it lost are read back from the trials' files."""
    journal = copied.results / "study.journal"
    content = journal.read_bytes()
    for cut in (content.index(b"\n") + 5, random.Random(0).randrange(len(content) // 2, len(content))):
        assert content[cut - 1 : cut] != b"\n"
        journal.write_bytes(content[:cut])
        (copied.results / "run.json").unlink()
        copied.run()
        assert copied.outcome() == expected
        assert journal.read_bytes().count(b"\n") == content.count(b"\n")
    assert copied.trained() == []


def test_a_torn_line_is_cut_before_anything_is_written_after_it(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    with open_study(None, path, "x") as study:
        study.set_attribute("a", 1)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"op_code": 2, "worker')
    with open_study(None, path, "x") as study:
        study.set_attribute("b", 2)
    assert path.read_bytes().startswith(whole + b'{"op_code"')
    with open_study(None, path, "x") as study:
        assert study.attributes == {"a": 1, "b": 2}


PRODUCTS = ("study.journal", "trials.csv", "best.yaml", "history.csv", "metrics.json")


def test_a_journal_that_is_damaged_in_the_middle_is_repaired(tmp_path: Path) -> None:
    """Optuna reads none that goes on after the damaged line."""
    path = tmp_path / "study.journal"
    with open_study(None, path, "x") as study:
        for name in "abcd":
            study.set_attribute(name, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b"\x00\xff" + lines[-2][2:], b"null\n", b'{"op_code": \n', b"[" * 100_000 + b"\n"):
        path.write_bytes(b"".join([*lines[:-2], bad, lines[-1]]))
        with open_study(None, path, "x") as study:
            assert sorted(study.attributes) == ["a", "b"]
        assert path.read_bytes().startswith(b"".join(lines[:-2]) + b'{"op_code"')


@pytest.mark.parametrize("first", [b"", b'{"op_code": 5, "worker_id": "x"}\n'])
def test_a_journal_that_contradicts_itself_is_begun_again(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "study.journal"
    with open_study(None, path, "x") as study:
        study.set_attribute("a", 1)
    path.write_bytes(first + b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with open_study(None, path, "x") as study:
        assert study.attributes == {}
        study.set_attribute("b", 2)
    with open_study(None, path, "x") as study:
        assert study.attributes == {"b": 2}


def test_damaged_and_missing_results_are_noticed(copied: ToyStudy) -> None:
    record = files.read_json(copied.results / "run.json", "")
    run = Run("toy/tune/big-small/iakd-tuned", "tune", record["key"], {}, 0, {}, {})
    assert up_to_date(run, 10)
    for name in PRODUCTS:
        path = copied.results / name
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], whole.replace(b"7", b"8"), None):
            path.unlink() if content is None else path.write_bytes(content)
            assert not up_to_date(run, 10), name
        path.write_bytes(whole)


def test_damaged_results_are_made_again_from_the_files_of_the_trials(
    copied: ToyStudy, expected: dict[str, Any]
) -> None:
    for name in PRODUCTS:
        path = copied.results / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    copied.run()
    assert copied.outcome() == expected
    assert copied.trained() == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.journal", b"null\n{}\n"),
        ("study.journal", b"\x00" * 100),
        ("trials.csv", b"number,state,value,origin\n1,complete\n"),
        ("trials.csv", b"number,state\n1,complete\n"),
        ("trials.csv", b""),
        ("trials.csv", b"\xff\xfe\x00"),
    ],
)
def test_reading_a_damaged_study_names_the_file_and_the_command(copied: ToyStudy, name: str, content: bytes) -> None:
    (copied.results / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*\): run `iakd tune` again"):
        load_study(copied.results)


def test_a_damaged_seed_of_a_trial_is_trained_again(copied: ToyStudy, expected: dict[str, Any]) -> None:
    path = copied.results / "trials/0000/seed1/metrics.json"
    path.write_bytes(path.read_bytes()[:-9])
    (copied.results / "run.json").unlink()
    (copied.results / "study.journal").unlink()
    copied.run()
    assert copied.outcome() == expected
    ((number, seed),) = copied.started()
    assert (number, seed) == (0, files.read_json(path.with_name("run.json"), "")["seed"])

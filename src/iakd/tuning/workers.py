"""A worker process: runs the trials that the pool hands it, one after the other, while the pool lives."""

import fcntl
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from iakd import files
from iakd.errors import RunFailed
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.tuning.decisions import Search
from iakd.tuning.shared_study import SharedStudy
from iakd.tuning.trial import TrialTrainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # USR1: Slurm's warning before the time limit
ALIVE = "workers.lock"  # held by every worker, in shared mode, for as long as it may write


@dataclass(frozen=True)
class WorkerTask:
    """What a worker needs to know; sent to it as a pickle."""

    experiment: Experiment
    job: StudyJob
    key: str  # of the study's run
    study: str  # its name in the storage
    journal: Path
    trainer: Callable[[Experiment, StudyJob, str], TrialTrainer]

    @property
    def search(self) -> Search:
        """What the study's decisions depend on."""
        return Search(self.experiment.params.tune, self.job.recipe, self.job.first)


def run_worker(task: WorkerTask, pipe: Connection) -> None:
    """Receive numbers of trials and send each back when its trial has ended; send an exception and end."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=[parent.sentinel], daemon=True).start()
    with (task.job.state / ALIVE).open("a") as alive:
        fcntl.flock(alive, fcntl.LOCK_SH)
        if not parent.is_alive():  # then a new parent may be at work already, and this lock came too late
            return
        try:
            _serve(task, pipe)
        except BaseException as error:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # it is ending; a second end would only be noise
            _send_error(pipe, error)


def _serve(task: WorkerTask, pipe: Connection) -> None:
    warnings.simplefilter("ignore")  # Optuna's about experimental features: they say nothing to the user
    from iakd.tuning.shared_study import SharedStudy, study_storage
    from iakd.tuning.trial import carry_out

    with study_storage(task.experiment.params.tune.storage, task.journal) as storage:
        study = SharedStudy(storage, task.study)
        trainer = task.trainer(task.experiment, task.job, task.key)
        while True:
            try:
                number = pipe.recv()
            except EOFError:
                return
            carry_out(task.search, study, trainer, number)
            pipe.send(number)


def _send_error(pipe: Connection, error: BaseException) -> None:
    if not isinstance(error, KeyboardInterrupt):
        error.add_note("".join(traceback.format_exception(error)))  # where it happened is lost on the way otherwise
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # not every exception survives it
        content = pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
    try:
        pipe.send_bytes(content)
    except OSError:
        return


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(signum).name)


def _end_with(sentinel: int) -> None:
    """End this process, whatever it is doing, when the pool's process has ended."""
    wait([sentinel])
    os._exit(1)


DEATHS = 3  # at one trial; then it is the trial's fault
SECONDS_TO_END = 2.0  # for a checkpoint
SECONDS_FOR_ORPHANS = 60.0


@dataclass
class Worker:
    """A process and the trial it is at."""

    process: BaseProcess
    pipe: Connection
    number: int | None = None


class Pool:
    """`with Pool(task, study, workers) as pool: pool.run(numbers, done)`; afterwards no process is left."""

    def __init__(self, task: WorkerTask, study: SharedStudy, workers: int) -> None:
        self._task = task
        self._study = study
        self._size = workers
        self._workers: list[Worker] = []
        self._deaths: Counter[int] = Counter()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def run(self, numbers: list[int], done: Callable[[int], None]) -> None:
        """Run these waiting trials; `done(number)` is called after each.

        Raises what a worker raises, and RunFailed where workers keep dying at one trial.
        """
        todo = deque(numbers)
        while todo or any(worker.number is not None for worker in self._workers):
            self._hand_out(todo)
            busy = {worker.pipe: worker for worker in self._workers if worker.number is not None}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]  # only pipes were waited for
                number, worker.number = worker.number, None
                assert number is not None
                if self._ended(worker) or self._bury(worker, number):
                    done(number)
                else:
                    todo.appendleft(number)

    def _hand_out(self, todo: deque[int]) -> None:
        idle = [worker for worker in self._workers if worker.number is None]
        while todo and (idle or len(self._workers) < self._size):
            worker = idle.pop() if idle else self._start()
            worker.number = todo.popleft()
            try:
                worker.pipe.send(worker.number)
            except OSError:  # it died while it was idle; reading from its pipe will tell
                continue

    def _start(self) -> Worker:
        context = multiprocessing.get_context("spawn")  # a fork would share the parent's threads and connections
        ours, theirs = context.Pipe()
        process = context.Process(target=run_worker, args=(self._task, theirs))  # no daemon: it may have children
        resource_tracker.ensure_running()  # starting the process would do it, and unblock SIGINT on the way
        # Ctrl-C on a terminal reaches the whole group, but only the parent may act on it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
            self._workers.append(Worker(process, ours))
        finally:
            theirs.close()  # so that the end of the process is the end of the pipe
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return self._workers[-1]

    def _ended(self, worker: Worker) -> bool:
        """Whether the worker's trial ended; False where the process died."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            return False
        if isinstance(message, BaseException):
            raise message
        return True

    def _bury(self, worker: Worker, number: int) -> bool:
        """Forget a dead worker; whether its trial had ended nevertheless. If not, the trial waits again."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        self._deaths[number] += 1
        if self._deaths[number] == DEATHS:
            raise RunFailed(
                f"{self._task.job.path}: trial {number}: its process died {DEATHS} times "
                f"(exit code {worker.process.exitcode}); is there enough memory for {self._size} workers?"
            )
        self._study.requeue(number)
        return self._study.records()[number].finished


def wait_for_orphans(lock: Path) -> None:
    """Wait until no worker of an earlier, killed study can write any more; they end by themselves."""
    with lock.open("a") as file:
        if not files.take(file, fcntl.LOCK_EX, SECONDS_FOR_ORPHANS):
            raise RunFailed(f"{lock}: workers of an earlier study are still alive; end them, then run again")

"""A worker process: runs the trials that the pool hands it, one after the other, while the pool lives."""

import fcntl
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import NoReturn

from iakd.plan import Plan, StudyJob
from iakd.tuning.proposals import Search
from iakd.tuning.trial import Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # USR1: Slurm's warning before the time limit
ALIVE = "workers.lock"  # held by every worker, in shared mode, for as long as it may write


@dataclass(frozen=True)
class Task:
    """What a worker needs to know; sent to it as a pickle."""

    plan: Plan
    job: StudyJob
    key: str  # of the study's run
    study: str  # its name in the storage
    journal: Path
    trainer: Callable[[Plan, StudyJob, str], Trainer]

    @property
    def search(self) -> Search:
        """What the study's decisions depend on."""
        return Search(self.plan.params.tune, self.job.recipe, self.job.first)


def work(task: Task, pipe: Connection) -> None:
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


def _serve(task: Task, pipe: Connection) -> None:
    warnings.simplefilter("ignore")  # Optuna's about experimental features: they say nothing to the user
    from iakd.tuning.shared import SharedStudy, study_storage
    from iakd.tuning.trial import carry_out

    with study_storage(task.plan.params.tune.storage, task.journal) as storage:
        study = SharedStudy(storage, task.study)
        trainer = task.trainer(task.plan, task.job, task.key)
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

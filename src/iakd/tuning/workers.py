"""Worker processes that train the trials of a study, and the pool that hands trials to them.

A worker opens neither the study's storage nor Optuna. It receives (number, parameters), sends (step, accuracy) after
each validation and is told whether to prune the trial, and sends the TrialResult at the end, or an exception. The seeds
of a trial are trained one after the other; each is a run of its own, in the folder of the trial.

Processes on other machines can train trials, too (`tuning.joining`). Whoever trains a trial holds the lock of its run.
The pool leaves out a trial that is locked; once it has ended, a worker of the pool reads it back from its files.
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import mean, stdev
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

from pydantic import ValidationError

from iakd import files
from iakd.config import Method, Tune, explain
from iakd.data.store import PreparedData
from iakd.errors import Busy, Diverged, RunFailed, UnsuitableSettings, UserError, is_out_of_memory
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.processes import STOP_SIGNALS, Forked, fork_in_server
from iakd.tuning.results import step_of, trial_path

ELSEWHERE = "elsewhere"  # has not ended: another process is training it
FIRST_SEED = 2**31  # above params.Seed: no reported student shares its seed with a trial
# What the settings of a trial can cause; errors of arithmetic, because a formula depends on nothing else.
SETTINGS_AT_FAULT = (UnsuitableSettings, Diverged, ArithmeticError)
OnValidation = Callable[[int, run_dir.Row], None]
Report = Callable[[int, float], bool]  # step (`step_of`), `StudyJob.measure` (percent) -> whether to prune the trial


class TrialPruned(Exception):
    """The study stops this trial early."""


@dataclass
class TrialResult:
    """How a trial, or one of its seeds, ended."""

    state: str  # complete, pruned, failed; or ELSEWHERE
    value: float | None
    reason: str | None = None
    macs: int | None = None  # multiply–accumulates of the training of the first seed, where they are an objective


class TrialTrainer(Protocol):
    """Trains the trials of a study; created once in every worker process."""

    def __init__(self, experiment: Experiment, job: StudyJob, key: str) -> None: ...

    def run(self, number: int, job: StudyJob, seed: int) -> run_dir.Run:
        """Return the run of one seed, by its position, of trial `number`: its files and its identity.

        `job` is the study's, with the method and the recipe that the trial tries.
        """
        ...

    def train(
        self, run: run_dir.Run, job: StudyJob, on_validation: OnValidation
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        """Train to the end, resuming an interrupted run; return history and metrics with `job.measure` (percent).

        Where they are an objective, those of the first seed also have train_macs.
        """
        ...


class StudentTrainer:
    """Trains students that differ only in what the study searches: the seeds are the same for all trials."""

    def __init__(self, experiment: Experiment, job: StudyJob, key: str) -> None:
        self.experiment = experiment
        self.key = key
        self.store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)

    def run(self, number: int, job: StudyJob, seed: int) -> run_dir.Run:
        """Return the run of one seed of trial `number`."""
        from iakd.distillation.assembly import student_run

        path = f"{job.path}/{trial_path(number)}/seed{seed}"
        about = {"trial": number, "trial_seed": seed, "study": self.key}
        return student_run(
            self.experiment, job, path, trial_seed(self.experiment.params.tune, seed), self.store, **about
        )

    def train(
        self, run: run_dir.Run, job: StudyJob, on_validation: OnValidation
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        """Train to the end; return history and metrics."""
        from iakd.distillation.assembly import StudentTask, train_student, training_macs

        task = StudentTask(run, job)
        history, metrics, *_ = train_student(task, self.experiment, self.store, on_validation)
        if self.experiment.params.tune.several_objectives and run.about["trial_seed"] == 0:
            metrics["train_macs"] = training_macs(task, self.experiment, self.store)
        return history, metrics


def trial_seed(tune: Tune, position: int) -> int:
    """Return the seed of a trial's students at `position`; none of another `tune.seed` or of `distill` is the same."""
    return FIRST_SEED * (1 + position) + tune.seed


def concrete(job: StudyJob, params: dict[str, Any]) -> StudyJob:
    """Return the study's job with what a trial tries.

    Raises UnsuitableSettings where these contradict each other.
    """
    try:
        method, recipe = job.space.candidate(params)
    except ValidationError as error:
        raise UnsuitableSettings(f"impossible: {explain(error, Method)}") from None
    return replace(job, method=method, recipe=recipe)


def run_trial(
    trainer: TrialTrainer, job: StudyJob, number: int, params: dict[str, Any], seeds: int, report: Report
) -> TrialResult:
    """Train the seeds of trial `number` and publish its files; read back what is published already.

    Returns at once, with the state ELSEWHERE, if another process is training it.
    """
    try:
        tried = concrete(job, params)
    except UnsuitableSettings as error:
        return TrialResult("failed", None, str(error))
    runs = [trainer.run(number, tried, seed) for seed in range(seeds)]
    own = _trial_run(runs[0], number, job)
    if own.finished:
        result, _ = _run_seeds(trainer, tried, runs, report)
        own.clear_live()  # left behind if the process died right after publishing
        return result
    with contextlib.ExitStack() as opened:
        try:
            opened.enter_context(own.open(patience=0))
        except Busy:
            return TrialResult(ELSEWHERE, None)
        result, history = _run_seeds(trainer, tried, runs, report)
        records = [files.read_object(run.folder / run_dir.RUN, "") for run in runs[: len(history)]]
        own.started = records[0]["started"]
        own.seconds += sum(record["wall_seconds"] for record in records) - own.wall_seconds()
        values = [value for row in history if (value := row[job.measure]) is not None]
        own.finish(history, {**vars(result), "seeds": len(values), "std": stdev(values) if len(values) > 1 else None})
    return result


def trial_lock(job: StudyJob, number: int) -> Path:
    """Return the lock that whoever trains a trial holds."""
    return job.state / trial_path(number) / run_dir.LOCK


def _trial_run(seed: run_dir.Run, number: int, job: StudyJob) -> run_dir.Run:
    """The run of a trial, given that of its first seed."""
    return run_dir.Run(
        path=f"{job.path}/{trial_path(number)}",
        stage="trial",
        key=files.digest(["trial", seed.key]),
        params=seed.params,
        seed=seed.seed,
        about={name: value for name, value in seed.about.items() if name != "trial_seed"},
        inputs=seed.inputs,
        device=seed.device,
    )


def _run_seeds(
    trainer: TrialTrainer, job: StudyJob, runs: list[run_dir.Run], report: Report
) -> tuple[TrialResult, list[run_dir.Row]]:
    """Run the seeds until the study stops the trial; return how it ended, and a row for each seed that it has begun."""
    values: list[float] = []
    history: list[run_dir.Row] = []
    macs: int | None = None
    for position, run in enumerate(runs):
        result = _run_seed(trainer, job, run, partial(_report_epoch, report, position, job.recipe.epochs))
        done, macs = result.state == "complete", macs or result.macs
        history.append({"seed": position, job.measure: result.value if done else None})
        if not done or result.value is None:
            return result, history
        values.append(result.value)
        history[-1]["mean"] = mean(values)
        if report(step_of(position, job.recipe.epochs, job.recipe.epochs), result.value) and len(values) < len(runs):
            return TrialResult("pruned", mean(values)), history
    return TrialResult("complete", mean(values), macs=macs), history


def _report_epoch(report: Report, position: int, epochs: int, epoch: int, value: float) -> bool:
    """Report an epoch of a seed, except the last one: what counts is the result of the finished training."""
    return epoch < epochs and report(step_of(position, epoch, epochs), value)


def _run_seed(trainer: TrialTrainer, job: StudyJob, run: run_dir.Run, report: Report) -> TrialResult:
    """Train one seed of a trial and publish its files; read the result back where they are published already."""
    validated: list[run_dir.Row] = []

    def on_validation(epoch: int, row: run_dir.Row) -> None:
        validated.append(row)
        if report(epoch, float(row[job.measure] or 0.0)):
            raise TrialPruned

    if run.finished:
        return _read_back(run, job.measure, on_validation)
    with run.open():
        history, metrics = validated, dict[str, Any]()
        try:
            history, metrics = trainer.train(run, job, on_validation)
            result = TrialResult("complete", float(metrics[job.measure]), macs=metrics.get("train_macs"))
        except TrialPruned:  # only validated epochs are available, whether or not the trial was interrupted
            result = TrialResult("pruned", float(validated[-1][job.measure] or 0.0))
        except SETTINGS_AT_FAULT as error:
            result = TrialResult("failed", None, _reason(error))
        run.finish(history, {**_finite(metrics), **vars(result)})
    return result


def _reason(error: Exception) -> str:
    """Why a trial failed, in a line."""
    known = isinstance(error, UserError | RunFailed)
    return str(error) if known else f"the arithmetic of the training failed: {type(error).__name__}: {error}"


def _finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Replace infinities, which JSON lacks, by None: an entropy may overflow although the accuracy is fine."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def _read_back(run: run_dir.Run, measure: str, on_validation: OnValidation) -> TrialResult:
    metrics = files.read_json(run.folder / run_dir.METRICS, f"delete {run.folder} to train the seed again")
    with contextlib.suppress(TrialPruned):
        for row in run_dir.read_history(run.folder / run_dir.HISTORY):
            if row.get(measure) is not None:
                on_validation(int(row["epoch"] or 0), row)
    run.clear_live()  # left behind if the process died right after publishing
    return TrialResult(metrics["state"], metrics["value"], metrics["reason"], metrics["macs"])


TRACEBACK = "traceback.txt"  # in the study's state folder, of an error that is a bug
ALIVE = "workers.lock"  # in the study's state folder; every worker holds it, shared, as long as it may write


@dataclass(frozen=True)
class WorkerTask:
    """What a worker needs to know; sent to it as a pickle."""

    experiment: Experiment
    job: StudyJob
    key: str  # of the study's run
    trainer: type[TrialTrainer]


def run_worker(task: WorkerTask, pipe: Connection, parent: int | None = None) -> None:
    """Run the trials that arrive through the pipe, one after the other; after an exception, send it and end.

    This process ends when `parent` is ready for reading, by default when the process that has started it ends.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    if parent is None:
        process = multiprocessing.parent_process()
        assert process is not None
        parent = process.sentinel
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    with files.lock(task.job.state / ALIVE, shared=True):
        if wait([parent], 0):  # a new parent may have started before this worker took the lock
            return
        try:
            _run_trials(task, pipe)
        except BaseException as error:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # it is ending already
            _send_error(pipe, error)


def run_forked_worker() -> None:
    """Be the worker, forked in the fork server, of the process at the other end of standard input."""
    pipe = Connection(os.dup(0))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        task, pid = pipe.recv()
        parent = os.pidfd_open(pid)
    except (EOFError, ProcessLookupError):  # it has ended
        return
    run_worker(task, pipe, parent)


def _run_trials(task: WorkerTask, pipe: Connection) -> None:
    def report(step: int, value: float) -> bool:
        pipe.send((step, value))
        return bool(pipe.recv())

    trainer = task.trainer(task.experiment, task.job, task.key)
    while True:
        try:
            number, params = pipe.recv()
        except EOFError:
            return
        pipe.send(run_trial(trainer, task.job, number, params, task.experiment.params.tune.seeds, report))


def _send_error(pipe: Connection, error: BaseException) -> None:
    if not isinstance(error, KeyboardInterrupt):
        error.add_note("".join(traceback.format_exception(error)))  # a pickle has no traceback
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # not every exception can be pickled
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", []):
            plain.add_note(note)
        content = pickle.dumps(plain)
    with contextlib.suppress(OSError):
        pipe.send_bytes(content)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(signum).name)


def _end_with(sentinel: int) -> None:
    """End this process, whatever it is doing, when the parent has ended."""
    wait([sentinel])
    os._exit(1)


MAX_DEATHS = 3  # of workers with the same trial; then the trial is at fault
SECONDS_TO_END = 2.0  # for saving a checkpoint
SECONDS_FOR_ORPHANS = 60.0
SECONDS_BETWEEN_LOOKS = 1.0  # at trials that other processes train


class StudyWriter(Protocol):
    """What the pool tells about trials."""

    def start(self, number: int) -> dict[str, Any]:
        """A worker is about to run trial `number`: return its parameters."""
        ...

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Trial `number` was validated at `step`: return whether to stop it."""
        ...

    def finish(self, number: int, result: TrialResult) -> None:
        """Trial `number` has ended."""
        ...


@dataclass
class Worker:
    """A process and the number of the trial that it runs."""

    process: BaseProcess | Forked
    pipe: Connection
    number: int | None = None

    def send(self, message: Any) -> None:
        """Send a message; a dead process is noticed when the pool receives from it."""
        with contextlib.suppress(OSError):
            self.pipe.send(message)


class Pool:
    """`with Pool(task, study, workers) as pool: pool.run(numbers)`; afterwards all its processes have ended."""

    def __init__(self, task: WorkerTask, study: StudyWriter, workers: int) -> None:
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
            if worker.number is not None:
                worker.send(False)  # one that waits for an answer could not save its checkpoint
        deadline = time.monotonic() + SECONDS_TO_END
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def run(self, numbers: list[int]) -> Iterator[int]:
        """Run these trials; yield the number of each when it has ended.

        Raises the errors of a worker that say what to do, and RunFailed for others, and where workers keep dying with
        the same trial.
        """
        todo = deque(numbers)
        while todo or any(worker.number is not None for worker in self._workers):
            self._hand_out(todo)
            busy = {worker.pipe: worker for worker in self._workers if worker.number is not None}
            for pipe in wait(list(busy), SECONDS_BETWEEN_LOOKS if todo else None):
                worker = busy[pipe]  # type: ignore[index]  # only pipes were waited for
                number = worker.number
                assert number is not None
                match self._receive(worker):
                    case step, value:
                        worker.send(self._study.should_prune(number, step, value))
                    case TrialResult(state=state) if state == ELSEWHERE:
                        worker.number = None
                        todo.append(number)
                    case TrialResult() as result:
                        self._study.finish(number, result)
                        worker.number = None
                        yield number
                    case UserError() | RunFailed() | OSError() as error:
                        raise error
                    case Exception() as error:
                        raise self._broken(number, error) from error
                    case KeyboardInterrupt() | None:  # a signal that was not meant for the study: its fork server died
                        self._reap(worker, number)
                        todo.appendleft(number)
                    case BaseException() as error:
                        raise error

    def _hand_out(self, todo: deque[int]) -> None:
        idle = [worker for worker in self._workers if worker.number is None]
        for number in list(todo):
            if not idle and len(self._workers) == self._size:
                break
            if files.held(trial_lock(self._task.job, number)):
                continue
            todo.remove(number)
            worker = idle.pop() if idle else self._start()
            worker.number = number
            worker.send((number, self._study.start(number)))

    def _start(self) -> Worker:
        if not self._fork():
            self._spawn()
        return self._workers[-1]

    def _fork(self) -> bool:
        near, far = multiprocessing.Pipe()
        with far:  # closed here, so that the pipe ends with the worker
            process = fork_in_server(f"{__name__}:{run_forked_worker.__name__}", [], [far.fileno(), 1, 2])
        if process is None:
            near.close()
            return False
        self._workers.append(Worker(process, near))
        self._workers[-1].send((self._task, os.getpid()))
        return True

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the parent's threads and connections
        near, far = context.Pipe()
        process = context.Process(target=run_worker, args=(self._task, far))  # not a daemon: it may have children
        resource_tracker.ensure_running()  # otherwise process.start() does it, and unblocks SIGINT
        # Ctrl-C in a terminal reaches the whole process group, but only the parent may act on it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
            self._workers.append(Worker(process, near))
        finally:
            far.close()  # so that the pipe ends with the process
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def _receive(self, worker: Worker) -> Any:
        """Return the worker's next message, or None if its process has died."""
        try:
            return worker.pipe.recv()
        except (EOFError, OSError):
            return None

    def _broken(self, number: int, error: Exception) -> RunFailed:
        """Return, as a line, an error that no settings cause; its traceback is in a file."""
        job = self._task.job
        where, what = f"{job.path}: trial {number}", f"{type(error).__name__}: {' '.join(str(error).split())}"
        if is_out_of_memory(error):
            return RunFailed(
                f"{where}: not enough memory ({what}); set tune.workers below {self._size}, or search smaller batches, "
                "then run again: the study resumes"
            )
        path = job.state / TRACEBACK
        files.write_text(path, "".join(getattr(error, "__notes__", [])))
        return RunFailed(f"{where}: {what}; that should not happen: please report it with {path}")

    def _reap(self, worker: Worker, number: int) -> None:
        """Remove a dead worker. Raises RunFailed if too many have died with this trial."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        self._deaths[number] += 1
        if self._deaths[number] == MAX_DEATHS:
            raise RunFailed(
                f"{self._task.job.path}: trial {number}: its process died {MAX_DEATHS} times "
                f"(exit code {worker.process.exitcode}); is there enough memory for {self._size} workers?"
            )


def wait_for_orphans(lock: Path) -> None:
    """Wait until the workers of an earlier, killed study have ended; they do so by themselves.

    Raises RunFailed if they take too long.
    """
    file = files.try_lock(lock, patience=SECONDS_FOR_ORPHANS)
    if file is None:
        raise RunFailed(f"{lock}: workers of an earlier study are still alive; end them, then run again")
    file.close()

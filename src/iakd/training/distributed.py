"""The processes that share one training, started by torchrun or by `iakd.processes.launch_processes`.

Each holds the whole state of the training and computes its shard of every batch. Only the main process (rank 0) writes
files and prints; its decisions and its errors become those of all.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from iakd import files
from iakd.data.loader import UNSHARDED, BatchShard, Shard
from iakd.errors import RunFailed, UserError
from iakd.experiment.run_dir import Run
from iakd.processes import RENDEZVOUS, STOP_SIGNALS, cores, rank_and_world_size

T = TypeVar("T")
FAILURE, REPORTED = "failure", "reported"  # keys of the store that all processes read and write
POLL_SECONDS = 0.05
SECONDS_TO_MEET = 300.0
SECONDS_FOR_MESSAGE = 3.0  # in which a failed process says why
SECONDS_FOR_REPORT = 20.0  # in which the main process prints it
PROCESS_DIED = "a process of this training died (killed, or out of memory?); run the same command again to resume"
ONE_LINE_ERRORS = (UserError, RunFailed, OSError, KeyboardInterrupt)


class TrainingProcesses:
    """The processes that share a training, as one of them sees them: its `shard` of every batch has rank and count."""

    def __init__(self, shard: Shard = UNSHARDED, local_count: int = 1) -> None:
        self.shard = shard
        self.local_count = local_count  # processes on this machine

    @property
    def count(self) -> int:
        """Number of processes."""
        return self.shard.count

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.shard.rank == 0

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process and return its result, or raise its error, in all. The others wait."""
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except ONE_LINE_ERRORS as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, 0, device=torch.device("cpu"))
        if outcome[1]:
            raise outcome[1]
        result: T = outcome[0]
        return result

    @contextlib.contextmanager
    def open_run(self, run: Run) -> Iterator[None]:
        """Hold the run's lock in the main process while the block runs."""
        with contextlib.ExitStack() as stack:
            self.on_main(lambda: stack.enter_context(run.open()) and None)
            yield

    def maximum(self, value: int) -> int:
        """Return the largest of the values that the processes pass."""
        if self.count == 1:
            return value
        return int(exchange(torch.tensor([value])).max())

    def loader_workers(self, configured: int | None) -> int | None:
        """Return the number of decoding workers for each process: by default those of a machine share its cores."""
        return max(1, cores() // self.local_count) if configured is None and self.count > 1 else configured


SINGLE_PROCESS = TrainingProcesses()
_current = SINGLE_PROCESS


def training_processes() -> TrainingProcesses:
    """Return the processes that this one has joined; `SINGLE_PROCESS` without `join_processes`."""
    return _current


def exchange(values: Tensor) -> Tensor:
    """Return the small CPU tensors (n,) of all processes as (count, n).

    Sent directly between each two processes: gloo's ring all-gather takes three to nine times as long.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    rows = values.new_empty((count, *values.shape))
    rows[rank] = values
    others = [other for other in range(count) if other != rank]
    pending = [dist.irecv(rows[other], other) for other in others]
    pending += [dist.isend(values, other) for other in others]
    for work in pending:
        assert work is not None
        work.wait()
    return rows


def all_gather(values: Tensor, shard: BatchShard) -> Tensor:
    """Return the rows of all processes, (whole, …), given this process's own, (B, …).

    The own rows keep their gradient, times the number of processes: all compute the same loss of the whole batch, and
    DistributedDataParallel averages. torch's differentiable all_gather is deprecated in favour of a private function,
    and would send gradients that every process has already.
    """
    padded = values.new_zeros((max(shard.sizes), *values.shape[1:]))  # NCCL needs equal sizes
    padded[: len(values)] = values.detach()
    gathered = [torch.empty_like(padded) for _ in shard.sizes]
    dist.all_gather(gathered, padded)
    rows = [some[:size] for some, size in zip(gathered, shard.sizes, strict=True)]
    if values.requires_grad:
        rows[shard.rank] = values.view_as(values)
        rows[shard.rank].register_hook(lambda gradient: gradient * shard.count)
    return torch.cat(rows)


@contextlib.contextmanager
def join_processes() -> Iterator[TrainingProcesses]:
    """Join the processes that the environment describes, as torchrun sets it, while the block runs.

    Raises UserError where the environment is incomplete, RunFailed if the others do not come. In the main process, an
    error that ends the block is raised, or the error of another process that failed first. The other processes print
    nothing and exit with the error's code.
    """
    global _current
    rank, count = rank_and_world_size()
    try:
        store, _, _ = next(dist.rendezvous(os.environ.get(RENDEZVOUS, "env://"), rank, count))
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE is {count} in the environment, but not all that torchrun sets with it "
            f"({str(error).split(': ')[-1]}); start with torchrun, or unset WORLD_SIZE"
        ) from None
    if rank > 0:
        logging.disable()
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    store = meet(store, rank, count)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    _current = TrainingProcesses(Shard(rank, count), int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    try:
        yield _current
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            _fail(store, rank, error)
    finally:
        _current = SINGLE_PROCESS
    dist.destroy_process_group()


def meet(store: dist.Store, rank: int, count: int) -> dist.Store:
    """Wait for all processes, and return the part of `store` that belongs to them alone.

    torchrun restarts processes with the store of those before. Without this, the first ones to be back would connect to
    the addresses of processes that are gone. Raises RunFailed if the others do not come.
    """
    own = uuid.uuid4().hex
    store.set(f"process {rank}", own)
    deadline = time.monotonic() + SECONDS_TO_MEET
    while time.monotonic() < deadline:
        if rank == 0 and store.check([f"process {other}" for other in range(count)]):
            present = [store.get(f"process {other}").decode() for other in range(count)]  # some perhaps of earlier ones
            store.set("present", json.dumps(present))
        else:
            present = json.loads(store.get("present")) if store.check(["present"]) else []
        if own in present:
            ours = dist.PrefixStore(files.digest(present), store)
            ours.set(f"joined {rank}", "")
            if rank == 0 and ours.check([f"joined {other}" for other in range(count)]):
                ours.set("complete", "")
            if ours.check(["complete"]):
                return ours
        time.sleep(POLL_SECONDS)
    raise RunFailed(f"not all {count} processes of this training came within {SECONDS_TO_MEET:.0f} seconds")


def _fail(store: dist.Store, rank: int, error: BaseException) -> NoReturn:
    """End this process because of `error`, and thereby the others, which cannot continue without it.

    torchrun reports a traceback and exit code 1 for any failure; one line and the error's own code need this.
    """
    for number in STOP_SIGNALS:  # as soon as one process has ended, the launcher stops the others
        signal.signal(number, signal.SIG_IGN)
    lost = _is_lost_connection(error)
    if rank == 0:
        if lost:
            error = _failure_of_another(store, SECONDS_FOR_MESSAGE) or RunFailed(PROCESS_DIED)
        elif isinstance(error, KeyboardInterrupt):  # from the launcher, where another process has failed
            error = _failure_of_another(store, POLL_SECONDS) or error
        store.set(REPORTED, "")
        raise error
    code = error.code if isinstance(error, SystemExit) else 1 + isinstance(error, UserError | OSError)
    if not (lost or isinstance(error, KeyboardInterrupt)):
        if not isinstance(error, (*ONE_LINE_ERRORS, SystemExit)):
            traceback.print_exception(error, file=sys.__stderr__)
            error = RunFailed(f"process {rank} failed: {type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):
            store.set(FAILURE, json.dumps([code, str(error)]))
            if not torch.cuda.is_available():  # NCCL would wait for the others
                dist.destroy_process_group()  # breaks the connection, so that the main process notices
                _wait_for(store, REPORTED, SECONDS_FOR_REPORT)
    sys.exit(code)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether `error` says nothing but that another process is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _failure_of_another(store: dist.Store, seconds: float) -> UserError | RunFailed | None:
    with contextlib.suppress(RuntimeError):
        if _wait_for(store, FAILURE, seconds):
            code, line = json.loads(store.get(FAILURE))
            return UserError(line) if code == 2 else RunFailed(line)
    return None


def _wait_for(store: dist.Store, key: str, seconds: float) -> bool:
    """Whether some process sets `key` within so many seconds. The store's own wait prints to stderr."""
    deadline = time.monotonic() + seconds
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True

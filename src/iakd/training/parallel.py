"""Several processes that do the same training together, started by torchrun or by `iakd.processes.several`.

Each has the whole state of the training and computes its share of every batch. The first one alone writes files and
speaks; what it decides, or fails in, is everybody's.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from iakd.data.share import ALL, Cut, Share
from iakd.errors import RunFailed, UserError
from iakd.processes import MEETING, cores, place
from iakd.runs import Run
from iakd.training.interrupt import SIGNALS

T = TypeVar("T")
FAILURE, TOLD = "failure", "told"  # names in the store that all processes read and write
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_FOR_LAST_WORDS = 3.0
SECONDS_FOR_FIRST = 20.0  # until the first process has said what is wrong
LOST = "a process of this training died (killed, or out of memory?); run the same command again and it goes on"
TOLD_KINDS = (UserError, RunFailed, OSError, KeyboardInterrupt)  # errors that are one line


class Processes:
    """Those that train together, as one of them sees them."""

    def __init__(self, share: Share = ALL, here: int = 1) -> None:
        self.share = share
        self.here = here  # how many of them are on this machine

    @property
    def count(self) -> int:
        """How many there are."""
        return self.share.count

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.share.rank == 0

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, which alone does it; its error is everybody's. Others wait."""
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except TOLD_KINDS as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, 0, device=torch.device("cpu"))
        if outcome[1]:
            raise outcome[1]
        result: T = outcome[0]
        return result

    @contextlib.contextmanager
    def opened(self, run: Run) -> Iterator[None]:
        """Hold the run's lock, in the first process, while the block runs."""
        with contextlib.ExitStack() as stack:
            self.lead(lambda: stack.enter_context(run.open()) and None)
            yield

    def highest(self, value: int) -> int:
        """The highest of the numbers that the processes come with."""
        if self.count == 1:
            return value
        return int(exchanged(torch.tensor([value])).max())

    def workers(self, wanted: int | None) -> int | None:
        """How many processes decode images for each of these: those of a machine share its cores."""
        return max(1, cores() // self.here) if wanted is None and self.count > 1 else wanted


ALONE = Processes()
_joined = ALONE


def processes() -> Processes:
    """Those that this process is among: `ALONE`, unless it has `joined` others."""
    return _joined


def exchanged(values: Tensor) -> Tensor:
    """A few numbers (n,) on the CPU of all processes, (count, n).

    Sent straight from each to each: over gloo's rings that takes three to nine times as long.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    rows = values.new_empty((count, *values.shape))
    rows[rank] = values
    others = [other for other in range(count) if other != rank]
    under_way = [dist.irecv(rows[other], other) for other in others]
    under_way += [dist.isend(values, other) for other in others]
    for work in under_way:
        assert work is not None
        work.wait()
    return rows


def gathered(values: Tensor, cut: Cut) -> Tensor:
    """Rows of all processes, (whole, …), from the own ones, (B, …). Their gradient comes back to the own ones.

    It is multiplied by the number of processes, since all of them compute what comes of these rows: weighed by 1/count
    each, and added up, gradients are then those of one process that does it all.
    """
    result: Tensor = _Gathered.apply(values, cut)
    return result


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cut: Cut) -> Tensor:
        ctx.cut = cut
        own = values.new_zeros((max(cut.sizes), *values.shape[1:]))  # NCCL wants equally many rows from each
        own[: len(values)] = values
        rows = [torch.empty_like(own) for _ in cut.sizes]
        dist.all_gather(rows, own)
        return torch.cat([some[:size] for some, size in zip(rows, cut.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.cut.part] * ctx.cut.count, None


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Be one of the processes that the environment tells of, as torchrun sets it, while the block runs.

    Raises UserError where the environment is incomplete. An error of the first process leaves the block; so does,
    there, that of another one which failed before. The others keep silent and exit with the code that belongs to it.
    """
    global _joined
    rank, count = place()
    try:
        store, _, _ = next(dist.rendezvous(os.environ.get(MEETING, "env://"), rank, count))
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE is {count} in the environment, but not all that torchrun sets with it "
            f"({str(error).split(': ')[-1]}); start with torchrun, or unset WORLD_SIZE"
        ) from None
    if rank > 0:
        logging.disable()
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    _joined = Processes(Share(rank, count), int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    try:
        yield _joined
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            _end(store, rank, error)
    finally:
        _joined = ALONE
    dist.destroy_process_group()


def _end(store: dist.Store, rank: int, error: BaseException) -> NoReturn:
    """End this process because of `error`, and with it the others, which cannot go on without it."""
    for number in SIGNALS:  # as soon as one process is gone, the launcher ends the others
        signal.signal(number, signal.SIG_IGN)
    lost = _is_loss(error)
    if rank == 0:
        if lost:
            error = _failure_of_another(store, SECONDS_FOR_LAST_WORDS) or RunFailed(LOST)
        elif isinstance(error, KeyboardInterrupt):  # by the launcher, where another process has failed
            error = _failure_of_another(store, 0.05) or error
        store.set(TOLD, "")
        raise error
    code = error.code if isinstance(error, SystemExit) else 1 + isinstance(error, UserError | OSError)
    if not (lost or isinstance(error, KeyboardInterrupt)):
        if not isinstance(error, (*TOLD_KINDS, SystemExit)):
            traceback.print_exception(error, file=sys.__stderr__)
            error = RunFailed(f"process {rank} failed: {type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):
            store.set(FAILURE, json.dumps([code, str(error)]))
            if not torch.cuda.is_available():  # NCCL's would wait for the others
                dist.destroy_process_group()  # so that the first one is told that this one is gone
                _said(store, TOLD, SECONDS_FOR_FIRST)
    sys.exit(code)


def _is_loss(error: BaseException) -> bool:
    """Whether it only says that another process is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _failure_of_another(store: dist.Store, seconds: float) -> UserError | RunFailed | None:
    with contextlib.suppress(RuntimeError):
        if _said(store, FAILURE, seconds):
            code, line = json.loads(store.get(FAILURE))
            return UserError(line) if code == 2 else RunFailed(line)
    return None


def _said(store: dist.Store, name: str, seconds: float) -> bool:
    """Whether some process says so in this time; the store's own way to wait writes to stderr."""
    deadline = time.monotonic() + seconds
    while not store.check([name]):
        if time.monotonic() > deadline:
            return False
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return True

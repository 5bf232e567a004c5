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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from iakd.data.loader import UNSHARDED, Batch, BatchShard, Shard
from iakd.errors import RunFailed, UserError
from iakd.experiment.run_dir import Run
from iakd.models.quantisation import Quantiser
from iakd.processes import MEETING, STOP_SIGNALS, cores, place

T = TypeVar("T")
FAILURE, TOLD = "failure", "told"  # names in the store that all processes read and write
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_FOR_LAST_WORDS = 3.0
SECONDS_FOR_FIRST = 20.0  # until the first process has said what is wrong
LOST = "a process of this training died (killed, or out of memory?); run the same command again and it goes on"
TOLD_KINDS = (UserError, RunFailed, OSError, KeyboardInterrupt)  # errors that are one line


class ProcessGroup:
    """Those that train together, as one of them sees them."""

    def __init__(self, share: Shard = UNSHARDED, here: int = 1) -> None:
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


ALONE = ProcessGroup()
_joined = ALONE


def processes() -> ProcessGroup:
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


def gathered(values: Tensor, cut: BatchShard) -> Tensor:
    """Rows of all processes, (whole, …), from the own ones, (B, …). Their gradient comes back to the own ones.

    It is multiplied by the number of processes, since all of them compute what comes of these rows: weighed by 1/count
    each, and added up, gradients are then those of one process that does it all.
    """
    result: Tensor = _Gathered.apply(values, cut)
    return result


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cut: BatchShard) -> Tensor:
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
def joined() -> Iterator[ProcessGroup]:
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
    _joined = ProcessGroup(Shard(rank, count), int(os.environ.get("LOCAL_WORLD_SIZE", count)))
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
    for number in STOP_SIGNALS:  # as soon as one process is gone, the launcher ends the others
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


BUCKET = 25 << 18  # float32 values that are sent together: 25 MiB


class Gradients:
    """Adds up the gradients of `parameters` over all processes, from each backward pass until `finish`."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._ready: list[Tensor] = []
        self._under_way: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._add) for parameter in parameters]

    def finish(self, more: Tensor) -> Tensor:
        """Wait until gradients are sums; gives the sum of `more`, too, which travels along."""
        self._ready.append(more)
        self._send()
        for work, flat, tensors in self._under_way:
            work.wait()
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
        self._under_way.clear()
        return more

    def close(self) -> None:
        """Leave the parameters as they were before."""
        for hook in self._hooks:
            hook.remove()

    def _add(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._ready.append(parameter.grad)
        if sum(tensor.numel() for tensor in self._ready) >= BUCKET:
            self._send()

    def _send(self) -> None:
        """Begin to add up what is ready."""
        flat = torch.cat([tensor.reshape(-1) for tensor in self._ready])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._under_way.append((work, flat, self._ready))
        self._ready = []


@dataclass
class Switch:
    """Whether the batch at work is divided among the processes."""

    on: bool = False

    def over_all(self, layer: nn.Module, features: Tensor) -> bool:
        """Whether a layer is to look at the images of all processes; not where only shapes are asked for."""
        return self.on and layer.training and not features.is_meta


@contextlib.contextmanager
def synchronised(modules: Iterable[nn.Module]) -> Iterator[Switch]:
    """While the block runs and its switch is on, layers in `modules` in training mode see the batch of all processes.

    They stay where they are, with their names and tensors. Raises UserError where a layer cannot do it.
    """
    switch = Switch()
    layers = {id(layer): layer for module in modules for layer in module.modules()}
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for layer in layers.values():
            kind = _kind(layer)
            if kind:
                changed.append((layer, type(layer)))
                layer.__class__ = kind
                layer.switch = switch  # type: ignore[assignment]  # no module
        yield switch
    finally:
        for layer, before in changed:
            layer.__class__ = before
            del layer.switch


def _kind(layer: nn.Module) -> type[nn.Module] | None:
    """What takes the place of such a layer; None where it looks at every image by itself."""
    if type(layer) is Quantiser:
        return SynchronisedQuantiser
    if not isinstance(layer, _BatchNorm):
        return None
    if type(layer) in OF:
        return OF[type(layer)]
    if isinstance(layer, nn.BatchNorm2d) and isinstance(getattr(layer, "act", None), nn.Module):
        return SynchronisedWithActivation
    raise UserError(
        f"several processes cannot train a network with layers of the kind {type(layer).__name__}; set "
        "compute.processes to 1, or choose another network"
    )


class _Synchronised(nn.SyncBatchNorm):
    """BatchNorm over the images of all processes, of which one may have none. On GPUs torch's own does it."""

    switch: Switch
    process_group = None  # all of them

    def forward(self, features: Tensor) -> Tensor:
        if not self.switch.over_all(self, features):
            return _BatchNorm.forward(self, features)
        return super().forward(features) if features.is_cuda else self._on_cpu(features)

    def _on_cpu(self, features: Tensor) -> Tensor:
        self._check_input_dim(features)
        mean, variance, count = _statistics(features)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            unbiased = variance * (count / (count - 1).clamp_min(1))
            for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
                assert running is not None
                running.lerp_(now.to(running.dtype), factor)
        scale = (variance + self.eps).rsqrt()
        result: Tensor = _Normalise.apply(features, self.weight, self.bias, mean.float(), scale.float(), count)
        return result


class SynchronisedBatchNorm1d(nn.BatchNorm1d, _Synchronised):
    """Of vectors."""


class SynchronisedBatchNorm2d(nn.BatchNorm2d, _Synchronised):
    """Of maps."""


class SynchronisedWithActivation(SynchronisedBatchNorm2d):
    """timm's kind, which has the activation inside."""

    drop: nn.Module
    act: nn.Module

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(features)))


OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
}


class SynchronisedQuantiser(Quantiser):
    """Learns its range from the images of all processes."""

    switch: Switch

    def ends(self, features: Tensor) -> Tensor:
        if not self.switch.over_all(self, features):
            return super().ends(features)
        # zeros where there is no image: the range contains 0 in any case
        low, high = super().ends(features) if features.numel() else self.range.new_zeros(2)
        ends = torch.stack([-low, high])
        if ends.is_cuda:
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        else:
            ends = exchanged(ends).amax(0)
        return ends * ends.new_tensor([-1, 1])


def _statistics(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of each channel of (B, C, …) over all processes, and how many values; float64."""
    channels = features.shape[1]
    mean, variance = features.new_zeros((2, channels), dtype=torch.float32)
    count = features.numel() // channels
    if count:  # the quickest way to them; with a factor of 1 it writes nothing but what it returns
        mean, variance = torch.ops.aten.batch_norm_update_stats(features.detach(), mean, variance.clone(), 1.0)
    mean, variance = mean.double(), variance.double()
    own = torch.cat([count * mean, count * (variance + mean.square()), mean.new_tensor([count])])
    sums = exchanged(own).sum(0)
    mean, square, _ = (sums / sums[-1]).split([channels, channels, 1])
    return mean, (square - mean.square()).clamp_min(0), sums[-1]


class _Normalise(torch.autograd.Function):
    """weight·(x − mean)·scale + bias by statistics of all processes, on which the gradient depends, too."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(features, weight, mean, scale, count)
        slope = scale if weight is None else weight * scale
        return _affine(features, slope, -mean * slope if bias is None else bias - mean * slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, scale, count = ctx.saved_tensors
        own = torch.zeros(2, len(mean))
        if features.numel():
            _, by_slope, by_offset = torch.ops.aten.native_batch_norm_backward(
                gradient, features, torch.ones_like(mean), None, None, mean, scale, True, 0.0, [False, True, True]
            )
            own = torch.stack([by_slope, by_offset])
        slope = scale if weight is None else weight * scale
        # slope·(g − Σg/N − x̂·Σ(g·x̂)/N) with x̂ = (x − mean)·scale, in two passes over memory
        by_slope, by_offset = exchanged(own).sum(0) / count.float()
        tilt = -slope * scale * by_slope
        result = _affine(gradient, slope, -slope * by_offset - tilt * mean)
        result += _affine(features, tilt, torch.zeros_like(tilt))
        affine = (None, None) if weight is None else (own[0], own[1])
        return result, *affine, None, None, None


def _affine(features: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """slope·x + offset of each channel, by torch's quickest kernel for it, in any precision and memory layout."""
    zeros, ones = torch.zeros_like(slope), torch.ones_like(slope)
    return torch.batch_norm(features, slope, offset, zeros, ones, False, 0.0, 0.0, False)


class Exchange:
    """A step of all processes together is, but for rounding, that of one process with the whole batch."""

    def __init__(self, gradients: Gradients, switch: Switch) -> None:
        self._gradients = gradients
        self._switch = switch

    def begin(self, batch: Batch) -> None:
        """To be called before the forward pass."""
        assert batch.shard is not None
        self._switch.on = batch.shard.divided

    def backward(self, values: Tensor, right: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The backward pass of the sum of `values` (terms,), means over the own images; gradients become the batch's.

        Gives those means and the number of right answers, `right`, of the whole batch, too.
        """
        cut = batch.shard
        assert cut is not None
        (values.sum() * cut.weight).backward()
        self._switch.on = False
        answers = right.float() if cut.divided else right / cut.count
        sums = self._gradients.finish(torch.cat([values.detach() * cut.weight, answers[None]]))
        return sums[:-1], sums[-1].round().long()


@contextlib.contextmanager
def exchanging(modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter]) -> Iterator[Exchange]:
    """While the block runs, `modules` see the batches of all processes, and gradients of `parameters` are added up.

    Raises UserError where a layer cannot.
    """
    with synchronised(modules) as switch, contextlib.closing(Gradients(parameters)) as gradients:
        yield Exchange(gradients, switch)

"""Training steps shared by several processes: DistributedDataParallel, with layers that see the whole batch."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from iakd.data.loader import Batch
from iakd.errors import UserError
from iakd.models.branches import BranchedBatchNorm2d
from iakd.models.quantisation import Quantiser, SwitchableBatchNorm2d
from iakd.training.distributed import exchange


@dataclass
class Sync:
    """Whether layers work across processes: only during a training step on a batch that is divided among them."""

    on: bool = False

    def applies(self, layer: nn.Module, features: Tensor) -> bool:
        """Whether `layer` works across processes now. Meta tensors only ask for shapes."""
        return self.on and layer.training and not features.is_meta


class DataParallel:
    """An objective trained by several processes: a step of all is that of one process, up to rounding.

    Parameters without a gradient in any process, those of swapped-out blocks, keep `grad` None and are not stepped.
    """

    def __init__(self, model: DistributedDataParallel, sync: Sync) -> None:
        self._model = model
        self._sync = sync

    def __call__(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return what the objective's forward pass returns for this process's images."""
        assert batch.shard is not None
        self._sync.on = batch.shard.divided
        outputs: tuple[dict[str, Tensor], Tensor] = self._model(batch, step)
        return outputs

    def backward(self, terms: Tensor, correct: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the whole batch's loss from `terms` (terms,), means over this process's images.

        Returns the means over the whole batch and its number of correct answers, given this process's, `correct`.
        """
        shard = batch.shard
        assert shard is not None
        (terms.sum() * (shard.weight * shard.count)).backward()  # DistributedDataParallel divides by the count
        self._sync.on = False
        correct = correct.float() if shard.divided else correct / shard.count
        sums = _sum_over_processes(torch.cat([terms.detach() * shard.weight, correct[None]]))
        return sums[:-1], sums[-1].round().long()


@contextlib.contextmanager
def data_parallel(objective: nn.Module) -> Iterator[DataParallel]:
    """Train `objective` with all processes while the block runs.

    Raises UserError for a layer that cannot work across processes.
    """
    # Synchronised layers keep buffers equal. They come second, since torch refuses SyncBatchNorm layers on a CPU.
    model = DistributedDataParallel(objective, forward_sync_buffers=False, find_unused_parameters=True)
    with synchronised(objective) as sync:
        yield DataParallel(model, sync)


@contextlib.contextmanager
def synchronised(module: nn.Module) -> Iterator[Sync]:
    """Have the layers of `module` that look across a batch see that of all processes, while the block runs.

    Layers change their class and keep their names and tensors. `nn.SyncBatchNorm.convert_sync_batchnorm` would leave
    other layers behind for good, and drop the activation inside timm's. Raises UserError for unknown kinds.
    """
    sync = Sync()
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for layer in module.modules():
            kind = _synchronised_class(layer)
            if kind:
                changed.append((layer, type(layer)))
                layer.__class__ = kind
                layer.sync = sync  # type: ignore[assignment]  # neither tensor nor module
        yield sync
    finally:
        for layer, before in changed:
            layer.__class__ = before
            del layer.sync


def _synchronised_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class that replaces the layer's; None where it treats each image by itself."""
    if type(layer) is Quantiser:
        return SyncQuantiser
    if not isinstance(layer, _BatchNorm):
        return None
    if type(layer) in SYNC_CLASSES:
        return SYNC_CLASSES[type(layer)]
    if isinstance(layer, nn.BatchNorm2d) and isinstance(getattr(layer, "act", None), nn.Module):
        return SyncBatchNormAct2d
    raise UserError(
        f"several processes cannot train a network with layers of the kind {type(layer).__name__}; set "
        "compute.processes to 1, or choose another network"
    )


class _SyncBatchNorm(nn.SyncBatchNorm):
    """BatchNorm over the images of all processes, of which one may have none.

    torch's own, but it refuses CPU tensors, so those are computed here.
    """

    sync: Sync
    process_group = None  # all processes

    def forward(self, features: Tensor) -> Tensor:
        if not self.sync.applies(self, features):
            return _BatchNorm.forward(self, features)
        return super().forward(features) if features.is_cuda else self._forward_cpu(features)

    def _forward_cpu(self, features: Tensor) -> Tensor:
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


class SyncBatchNorm1d(nn.BatchNorm1d, _SyncBatchNorm):
    """For vectors."""


class SyncBatchNorm2d(nn.BatchNorm2d, _SyncBatchNorm):
    """For feature maps."""


class SyncBatchNormAct2d(SyncBatchNorm2d):
    """timm's BatchNorm, which contains the activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(features)))


class SyncSwitchableBatchNorm2d(SwitchableBatchNorm2d, SyncBatchNorm2d):
    """For the highest of several bit-widths; the layers of the others are plain ones."""


class SyncBranchedBatchNorm2d(BranchedBatchNorm2d, SyncBatchNorm2d):
    """For the first of two branches; the second is a plain layer."""


SYNC_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    SwitchableBatchNorm2d: SyncSwitchableBatchNorm2d,
    BranchedBatchNorm2d: SyncBranchedBatchNorm2d,
}


class SyncQuantiser(Quantiser):
    """Learns its range from the images of all processes."""

    sync: Sync

    def ends(self, features: Tensor) -> Tensor:
        if not self.sync.applies(self, features):
            return super().ends(features)
        # zeros without images: every range contains 0
        low, high = super().ends(features) if features.numel() else self.range.new_zeros(2)
        ends = torch.stack([-low, high])
        if ends.is_cuda:
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        else:
            ends = exchange(ends).amax(0)
        return ends * ends.new_tensor([-1, 1])


def _sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a small tensor (n,) of each process."""
    if values.is_cuda:
        dist.all_reduce(values)
        return values
    return exchange(values).sum(0)


def _statistics(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each channel's mean and variance (C,) over all processes and the number of values, all float64.

    `features` has the shape (B, C, …).
    """
    channels = features.shape[1]
    mean, variance = features.new_zeros((2, channels), dtype=torch.float32)
    count = features.numel() // channels
    if count:  # the fastest kernel; a momentum of 1 makes it return the batch's statistics
        mean, variance = torch.ops.aten.batch_norm_update_stats(features.detach(), mean, variance.clone(), 1.0)
    mean, variance = mean.double(), variance.double()
    own = torch.cat([count * mean, count * (variance + mean.square()), mean.new_tensor([count])])
    sums = exchange(own).sum(0)
    mean, square, _ = (sums / sums[-1]).split([channels, channels, 1])
    return mean, (square - mean.square()).clamp_min(0), sums[-1]


class _Normalise(torch.autograd.Function):
    """weight·(x − mean)·scale + bias with the statistics of all processes, through which gradients flow, too."""

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
        by_slope, by_offset = _sum_over_processes(own) / count.float()
        tilt = -slope * scale * by_slope
        result = _affine(gradient, slope, -slope * by_offset - tilt * mean)
        result += _affine(features, tilt, torch.zeros_like(tilt))
        affine = (None, None) if weight is None else (own[0], own[1])
        return result, *affine, None, None, None


def _affine(features: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return slope·x + offset per channel, by torch's fastest kernel for it, for any precision and memory layout."""
    zeros, ones = torch.zeros_like(slope), torch.ones_like(slope)
    return torch.batch_norm(features, slope, offset, zeros, ones, False, 0.0, 0.0, False)

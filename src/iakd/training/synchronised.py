"""Layers that look across the images of a batch, for a batch that several processes share."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from iakd.errors import UserError
from iakd.models.quantised import Quantiser
from iakd.training.parallel import exchanged


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

"""Networks that compute with few bits, simulated in floating point so that they can be trained.

Quantisation-aware training with straight-through gradients (Jacob et al. 2018, sections 2 and 3): a weight becomes the
nearest of 2^bits − 1 values, symmetric around 0, with a scale for each output channel; what goes into a layer becomes
one of 2^bits values between the running ends of its range. torch.fake_quantize_* compute the same, but have no kernel
for tensors without content, from which this project reads shapes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_AND_LAST = 8  # bits of the layers next to image and classes, as is usual: they cost little and matter much
QUANTISER = "quantiser.range"  # how the name of a range ends in a network's state
MOMENTUM = 0.1  # of the running ends of a range


def nearest(values: Tensor, scale: Tensor, zero: Tensor | int, low: int, high: int) -> Tensor:
    """`values` as the nearest (q − zero)·scale with a whole q from low to high.

    The gradient passes unchanged where the value lies within the range, and is 0 outside it.
    """
    levels = torch.clamp(values / scale + zero, low, high)
    levels = levels + (levels.round() - levels).detach()
    return (levels - zero) * scale


class Quantiser(nn.Module):
    """What a layer needs to compute with `bits`: the range (2,) of its input, learnt from the batches it sees."""

    range: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("range", torch.tensor([math.inf, -math.inf]))  # nothing seen yet

    def input(self, features: Tensor) -> Tensor:
        """`features` in 2^bits steps over a range that contains 0."""
        now = self.ends(features)
        if self.training:
            self.range.copy_(torch.where(self.range.isfinite(), torch.lerp(self.range, now, MOMENTUM), now))
        low, high = torch.where(self.range.isfinite(), self.range, now).unbind()
        most = 2**self.bits - 1
        scale = ((high - low) / most).clamp(min=1e-8)
        return nearest(features, scale, (-low / scale).round(), 0, most)

    def ends(self, features: Tensor) -> Tensor:
        """Lowest and highest value (2,) of `features` and 0."""
        low, high = features.detach().float().aminmax()
        return torch.stack([low.clamp(max=0), high.clamp(min=0)])

    def weight(self, weight: Tensor) -> Tensor:
        """`weight` (out, …) in 2^bits − 1 steps, symmetric, each output channel on its own scale."""
        most = 2 ** (self.bits - 1) - 1
        scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-8) / most
        return nearest(weight, scale.view(-1, *[1] * (weight.dim() - 1)), 0, -most, most)


class QuantisedConv2d(nn.Conv2d):
    """A convolution with few bits."""

    quantiser: Quantiser

    def forward(self, features: Tensor) -> Tensor:
        weight = self.quantiser.weight(self.weight)
        return self._conv_forward(self.quantiser.input(features), weight, self.bias)


class QuantisedLinear(nn.Linear):
    """A linear layer with few bits."""

    quantiser: Quantiser

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(self.quantiser.input(features), self.quantiser.weight(self.weight), self.bias)


OF: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuantisedConv2d, nn.Linear: QuantisedLinear}


def quantise(network: nn.Module, bits: int) -> None:
    """Have all convolutions and linear layers compute with `bits`, the first and the last with at least eight."""
    layers = [layer for layer in network.modules() if type(layer) in OF]
    for layer in layers:
        ends = layer is layers[0] or layer is layers[-1]
        layer.__class__ = OF[type(layer)]  # the parameters stay where they are, under their names
        layer.quantiser = Quantiser(max(bits, FIRST_AND_LAST) if ends else bits)


def weight_bytes(network: nn.Module) -> int:
    """Bytes that the parameters take: 4 for each, but of quantised weights as many bits as they have."""
    spared = sum(
        layer.weight.numel() * (32 - layer.quantiser.bits)
        for layer in network.modules()
        if isinstance(layer, QuantisedConv2d | QuantisedLinear)
    )
    return (32 * sum(parameter.numel() for parameter in network.parameters()) - spared) // 8

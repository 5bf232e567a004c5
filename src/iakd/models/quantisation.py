"""Simulated quantisation: networks with few bits, in floating point so that they can be trained.

Quantisation-aware training with straight-through gradients (Jacob et al. 2018, sections 2 and 3). A weight is rounded
to one of 2^bits − 1 values, symmetric around 0, with a scale per output channel; a layer's input to one of 2^bits
values in the running range of its inputs. torch.fake_quantize_* compute the same, but have no kernel for meta tensors,
from which this project reads shapes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_AND_LAST = 8  # bits of the first and last layer, as is usual: they are small and sensitive
QUANTISER = "quantiser.range"  # end of a range's name in a state_dict
MOMENTUM = 0.1  # of the running range


def nearest(values: Tensor, scale: Tensor, zero: Tensor | int, low: int, high: int) -> Tensor:
    """Round `values` to the nearest (q − zero)·scale with an integer q from low to high.

    The gradient passes unchanged within the range, and is 0 outside it.
    """
    levels = torch.clamp(values / scale + zero, low, high)
    levels = levels + (levels.round() - levels).detach()
    return (levels - zero) * scale


class Quantiser(nn.Module):
    """What a layer needs to compute with `bits`: the running range (2,) of its inputs, updated by training batches."""

    range: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("range", torch.tensor([math.inf, -math.inf]))  # no batch yet

    def input(self, features: Tensor) -> Tensor:
        """Round `features` to 2^bits levels over a range that contains 0."""
        now = self.ends(features)
        if self.training:
            self.range.copy_(torch.where(self.range.isfinite(), torch.lerp(self.range, now, MOMENTUM), now))
        low, high = torch.where(self.range.isfinite(), self.range, now).unbind()
        max_level = 2**self.bits - 1
        scale = ((high - low) / max_level).clamp(min=1e-8)
        return nearest(features, scale, (-low / scale).round(), 0, max_level)

    def ends(self, features: Tensor) -> Tensor:
        """Return the lowest and highest value (2,) of `features` and 0."""
        low, high = features.detach().float().aminmax()
        return torch.stack([low.clamp(max=0), high.clamp(min=0)])

    def weight(self, weight: Tensor) -> Tensor:
        """Round `weight` (out, …) to 2^bits − 1 symmetric levels, with a scale per output channel."""
        max_level = 2 ** (self.bits - 1) - 1
        scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-8) / max_level
        return nearest(weight, scale.view(-1, *[1] * (weight.dim() - 1)), 0, -max_level, max_level)


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


QUANTISED_TYPES: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuantisedConv2d, nn.Linear: QuantisedLinear}


def quantise(network: nn.Module, bits: int) -> None:
    """Let all convolutions and linear layers compute with `bits`; the first and the last with at least eight."""
    layers = [layer for layer in network.modules() if type(layer) in QUANTISED_TYPES]
    for layer in layers:
        ends = layer is layers[0] or layer is layers[-1]
        layer.__class__ = QUANTISED_TYPES[type(layer)]  # parameters keep their names
        layer.quantiser = Quantiser(max(bits, FIRST_AND_LAST) if ends else bits)


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of the parameters: 4 each, or the bits of quantised weights."""
    saved_bits = sum(
        layer.weight.numel() * (32 - layer.quantiser.bits)
        for layer in network.modules()
        if isinstance(layer, QuantisedConv2d | QuantisedLinear)
    )
    return (32 * sum(parameter.numel() for parameter in network.parameters()) - saved_bits) // 8

"""Simulated quantisation: networks with few bits, in floating point so that they can be trained.

Quantisation-aware training with straight-through gradients (Jacob et al. 2018, sections 2 and 3). A weight is rounded
to one of 2^bits − 1 values, symmetric around 0, with a scale per output channel; a layer's input to one of 2^bits
values in the running range of its inputs. torch.fake_quantize_* compute the same, but have no kernel for meta tensors,
from which this project reads shapes.

A network of several bit-widths has one set of weights. Each bit-width has BatchNorm layers and ranges of inputs of its
own, as in AdaBits (Jin et al., CVPR 2020) and Any-Precision DNNs (Yu et al., AAAI 2021). Those of the highest one have
the names of a network with one bit-width, so that whatever looks into the network finds them.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from iakd.errors import UserError

FIRST_AND_LAST = 8  # bits of the first and last layer, as is usual: they are small and sensitive
QUANTISER = "quantiser.range"  # end of a range's name in a state_dict
LOWER = "lower_bits"  # part of the names of what only lower bit-widths use
MOMENTUM = 0.1  # of the running range

Layer = TypeVar("Layer", bound="Quantiser | SwitchableBatchNorm2d")


class BitWidths:
    """A network's switch, which its layers share: `all` bit-widths, highest first, and the one in use, `now`."""

    def __init__(self, bits: Sequence[int]) -> None:
        self.all = sorted(bits, reverse=True)
        self.now = self.all[0]

    def lower(self, layers: Iterable[nn.Module]) -> nn.ModuleDict:
        """Return one layer for each bit-width below the highest, by its number."""
        return nn.ModuleDict(dict(zip(map(str, self.all[1:]), layers, strict=True)))

    def in_use(self, layer: Layer) -> Layer:
        """Return the layer's counterpart for the present bit-width: for the highest one, itself."""
        return layer if self.now == self.all[0] else cast(Layer, layer.lower_bits[str(self.now)])


def nearest(values: Tensor, scale: Tensor, zero: Tensor | int, low: int, high: int) -> Tensor:
    """Round `values` to the nearest (q − zero)·scale with an integer q from low to high.

    The gradient passes unchanged within the range, and is 0 outside it.
    """
    levels = torch.clamp(values / scale + zero, low, high)
    levels = levels + (levels.round() - levels).detach()
    return (levels - zero) * scale


class Quantiser(nn.Module):
    """What a layer needs to compute with `bits`: the running range (2,) of its inputs, updated by training batches.

    That of the highest of several bit-widths holds those of the others.
    """

    range: Tensor
    switch: BitWidths | None = None
    lower_bits: nn.ModuleDict  # by bit-width, if there are several

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("range", torch.tensor([math.inf, -math.inf]))  # no batch yet

    @property
    def in_use(self) -> "Quantiser":
        """The one for the present bit-width."""
        return self.switch.in_use(self) if self.switch else self

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
        quantiser = self.quantiser.in_use
        return self._conv_forward(quantiser.input(features), quantiser.weight(self.weight), self.bias)


class QuantisedLinear(nn.Linear):
    """A linear layer with few bits."""

    quantiser: Quantiser

    def forward(self, features: Tensor) -> Tensor:
        quantiser = self.quantiser.in_use
        return F.linear(quantiser.input(features), quantiser.weight(self.weight), self.bias)


QUANTISED_TYPES: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuantisedConv2d, nn.Linear: QuantisedLinear}


class SwitchableBatchNorm2d(nn.BatchNorm2d):
    """The BatchNorm layer of the highest bit-width, which holds those of the others."""

    switch: BitWidths
    lower_bits: nn.ModuleDict  # by bit-width

    @property
    def in_use(self) -> nn.BatchNorm2d:
        """The one for the present bit-width."""
        return self.switch.in_use(self)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) if self.in_use is self else self.in_use(features)


def quantise(network: nn.Module, bits: int | Sequence[int]) -> None:
    """Let all convolutions and linear layers compute with `bits`; the first and the last with at least eight.

    With several bit-widths, the network computes with the highest until `set_bits` chooses another. Raises UserError
    for BatchNorm layers that cannot be switched.
    """
    switch = BitWidths([bits] if isinstance(bits, int) else bits)
    layers = [layer for layer in network.modules() if type(layer) in QUANTISED_TYPES]
    for layer in layers:
        least = FIRST_AND_LAST if layer is layers[0] or layer is layers[-1] else 0
        layer.__class__ = QUANTISED_TYPES[type(layer)]  # parameters keep their names
        layer.quantiser, *lower = (Quantiser(max(each, least)) for each in switch.all)
        if lower:
            layer.quantiser.switch, layer.quantiser.lower_bits = switch, switch.lower(lower)
    if len(switch.all) == 1:
        return
    for layer in [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]:
        if type(layer) is not nn.BatchNorm2d:
            raise UserError(
                "each of several bit-widths needs BatchNorm layers of its own, which exist for BatchNorm2d, not for "
                f"this network's {type(layer).__name__}; set a single number of bits, or choose another network"
            )
        copies = [copy.deepcopy(layer) for _ in switch.all[1:]]
        layer.__class__ = SwitchableBatchNorm2d
        layer.switch, layer.lower_bits = switch, switch.lower(copies)  # type: ignore[assignment]


def bit_widths(network: nn.Module) -> list[int]:
    """Return the bit-widths that a network can be switched between, highest first; [] if it cannot."""
    switch = _switch(network)
    return switch.all if switch else []


def bits_in_use(network: nn.Module) -> int | None:
    """Return the bit-width that a network of several computes with; None if it has no choice."""
    switch = _switch(network)
    return switch.now if switch else None


def _switch(network: nn.Module) -> BitWidths | None:
    return next((layer.switch for layer in network.modules() if isinstance(layer, Quantiser) and layer.switch), None)


def set_bits(network: nn.Module, bits: int) -> None:
    """Let a network of several bit-widths compute with `bits`. Raises ValueError if that is none of them."""
    switch = _switch(network)
    if switch is None or bits not in switch.all:
        known = f"{switch.all} bits" if switch else "one number of bits"
        raise ValueError(f"this network computes with {known}, and cannot be switched to {bits}")
    switch.now = bits


@contextmanager
def at_bits(network: nn.Module, bits: int) -> Iterator[None]:
    """Let a network of several bit-widths compute with `bits` while the block runs; see `set_bits`."""
    switch = _switch(network)
    before = switch.now if switch else bits
    set_bits(network, bits)
    try:
        yield
    finally:
        set_bits(network, before)


def each_bits(network: nn.Module) -> Iterator[int | None]:
    """Yield each bit-width, highest first, while the network computes with it; None, once, if it has no choice."""
    if not bit_widths(network):
        yield None
    for bits in bit_widths(network):
        with at_bits(network, bits):
            yield bits


def keep_bits(network: nn.Module, bits: int) -> None:
    """Turn a network of several bit-widths into the one that it is at `bits`, as if it had been built with these only.

    Raises ValueError if that is none of its bit-widths.
    """
    set_bits(network, bits)
    for layer in list(network.modules()):
        if isinstance(layer, QuantisedConv2d | QuantisedLinear):
            layer.quantiser = layer.quantiser.in_use
            layer.quantiser.switch = None
            layer.quantiser._modules.pop(LOWER, None)
        elif isinstance(layer, SwitchableBatchNorm2d):
            layer.load_state_dict(layer.in_use.state_dict(), strict=False)
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
            del layer.lower_bits, layer.switch


def start_lower_bits(network: nn.Module) -> None:
    """Let the BatchNorm layers of the lower bit-widths start as those of the highest one."""
    for layer in network.modules():
        if isinstance(layer, SwitchableBatchNorm2d):
            for lower in layer.lower_bits.values():
                lower.load_state_dict(layer.state_dict(), strict=False)


def only_if_quantised(name: str) -> bool:
    """Return whether a tensor of this name in a state_dict has no counterpart in a network of full precision."""
    return name.endswith(QUANTISER) or LOWER in name.split(".")


def parameters_in_use(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a network computes with at its present bit-width."""
    resting = {
        parameter
        for layer in network.modules()
        if isinstance(layer, SwitchableBatchNorm2d)
        for each in (layer, *layer.lower_bits.values())
        if each is not layer.in_use
        for parameter in each.parameters(recurse=False)
    }
    return [parameter for parameter in network.parameters() if parameter not in resting]


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of the parameters at the present bit-width: 4 each, or the bits of quantised weights."""
    saved_bits = sum(layer.weight.numel() * (32 - layer.quantiser.in_use.bits) for layer in quantised_layers(network))
    return (32 * sum(parameter.numel() for parameter in parameters_in_use(network)) - saved_bits) // 8


def quantised_layers(network: nn.Module) -> list[QuantisedConv2d | QuantisedLinear]:
    """Return the convolutions and linear layers with few bits."""
    return [layer for layer in network.modules() if isinstance(layer, QuantisedConv2d | QuantisedLinear)]

"""Layers with two parallel branches, mixed channel by channel in training, and merged into one in the end.

The representation compensation module of RCN (Zhang et al., Representation Compensation Networks for Continual Semantic
Segmentation, CVPR 2022): a convolution and its BatchNorm have a second branch of the same shape,

    y = η·BN(conv(x)) + (1 − η)·BN′(conv′(x))        η in each channel

which is linear up to the next activation. So with a fixed η, as in evaluation mode, it is a single convolution.
"""

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from iakd.models.network import Network
from iakd.models.shapes import Shape, call_on_meta

Layers = tuple[nn.Conv2d, nn.BatchNorm2d]
"""A convolution and the BatchNorm of its output."""


class BranchedConv2d(nn.Conv2d):
    """A convolution with a `second` one: returns the channels of both, (B, C, H, W) → (B, 2·C′, H′, W′)."""

    second: nn.Conv2d

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([super().forward(features), self.second(features)], dim=1)


class BranchedBatchNorm2d(nn.BatchNorm2d):
    """The BatchNorm of a `BranchedConv2d`: normalises both branches and mixes them, (B, 2·C, H, W) → (B, C, H, W).

    η is `share` (C,) in training mode, where it is not None, and otherwise ½. A second branch whose weights are frozen
    stays in evaluation mode, so that its statistics are frozen, too.
    """

    second: nn.BatchNorm2d
    share: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        own, other = features.chunk(2, dim=1)
        own, other = super().forward(own), self.second(other)
        if self.training and self.share is not None:
            return other + (own - other) * self.share.view(-1, 1, 1).to(own.dtype)
        return other + (own - other) * 0.5

    def train(self, mode: bool = True) -> "BranchedBatchNorm2d":
        """Set the mode; a frozen second branch stays in evaluation mode."""
        super().train(mode)
        self.second.train(mode and self.second.weight.requires_grad)
        return self


def add_branch(layers: Layers, second: Layers) -> None:
    """Give layers a second branch. The first one keeps its tensors and their names."""
    for layer, branched, other in zip(layers, (BranchedConv2d, BranchedBatchNorm2d), second, strict=True):
        layer.__class__ = branched
        layer.second = other
        layer.train(layer.training)


@torch.no_grad()
def merge_branches(layers: Layers) -> None:
    """Make layers plain again, such that they compute what both branches compute in evaluation mode, η = ½.

    With a_i = γ_i/√(var_i + ε) of branch i: the convolution becomes ½·Σ a_i·conv_i, and the BatchNorm gets scale 1,
    shift ½·Σ β_i, mean ½·Σ a_i·μ_i and variance 1 − ε. The mean is that of the new convolution's outputs, whose
    variance is not known, because the branches are correlated.
    """
    conv, norm = cast(tuple[BranchedConv2d, BranchedBatchNorm2d], layers)
    branches = (conv, norm), (conv.second, norm.second)
    weight, shift, mean = (torch.zeros_like(each, dtype=torch.float64) for each in (conv.weight, norm.bias, norm.bias))
    bias = torch.zeros_like(shift)
    for each_conv, each_norm in branches:
        assert each_norm.running_mean is not None and each_norm.running_var is not None
        scale = each_norm.weight.double() / (each_norm.running_var.double() + each_norm.eps).sqrt() / 2
        weight += scale.view(-1, 1, 1, 1) * each_conv.weight
        mean += scale * each_norm.running_mean
        shift += each_norm.bias / 2
        if each_conv.bias is not None:
            bias += scale * each_conv.bias
    for layer, plain in zip(layers, (nn.Conv2d, nn.BatchNorm2d), strict=True):
        layer.__class__ = plain
        del layer.second
        layer.__dict__.pop("share", None)
    conv.weight.copy_(weight)
    if conv.bias is not None:
        conv.bias.copy_(bias)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.weight.fill_(1)
    norm.bias.copy_(shift)
    norm.running_mean.copy_(mean)
    norm.running_var.fill_(1 - norm.eps)


def normalised_convolutions(network: Network, image: Shape) -> list[Layers]:
    """Return the convolutions whose output nothing reads but a BatchNorm, with it, in the order of computation.

    Both are plain Conv2d and BatchNorm2d layers in the same part of the network (stem, block or head), so that what
    passes between parts remains what it is. `image` is the shape of one image; nothing is computed.
    """
    written: dict[Any, nn.Conv2d] = {}  # by node of the graph that autograd records
    read: list[tuple[Any, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def begin(*_: Any) -> None:  # of a second call, if the first one needed values
        for found in (written, read, calls):
            found.clear()

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        calls[layer] += 1
        if isinstance(layer, nn.Conv2d):
            written[output.grad_fn] = layer
        elif isinstance(layer, nn.BatchNorm2d):
            read.append((inputs[0].grad_fn, layer))

    plain = [layer for layer in network.modules() if type(layer) in (nn.Conv2d, nn.BatchNorm2d)]
    handles = [network.register_forward_pre_hook(begin), *(layer.register_forward_hook(note) for layer in plain)]
    try:
        images = torch.empty(2, *image, device="meta", requires_grad=True)
        logits: Tensor = call_on_meta(network, images)
    finally:
        for handle in handles:
            handle.remove()
    readers = _readers(logits.grad_fn)
    part_of = {layer: part for part in (network.stem, *network.blocks, network.head) for layer in part.modules()}
    found = [(written[node], norm) for node, norm in read if node in written and readers[node] == 1]
    return [
        (conv, norm)
        for conv, norm in found
        if part_of[conv] is part_of[norm]
        and calls[conv] == calls[norm] == 1
        and norm.affine
        and norm.track_running_stats
    ]


def _readers(end: Any) -> Counter[Any]:
    """Return how many operations read the result of each node of a graph that autograd recorded and `end` ends."""
    readers: Counter[Any] = Counter()
    waiting = [end]
    while waiting:
        nodes = [node for node, _ in waiting.pop().next_functions if node is not None]
        waiting += [node for node in dict.fromkeys(nodes) if node not in readers]
        readers.update(nodes)
    return readers

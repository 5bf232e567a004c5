"""Shapes of features inside a network, found without computing any, unless the network needs values."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from iakd.models.features import FeatureSpec, forward_features
from iakd.models.network import Network

Shape = tuple[int, ...]  # of one image's features: (channels, height, width), or (tokens, channels)


class _FeatureShapes(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Shape]:
        features = self.network.stem(images)
        shapes = [tuple(features.shape[1:])]
        for block in self.network.blocks:
            features = block(features)
            shapes.append(tuple(features.shape[1:]))
        return shapes


def feature_shapes(network: Network, image: Shape) -> list[Shape]:
    """Return the shapes after the stem and after each block, for one image of shape (channels, height, width).

    Uses meta tensors, so nothing is computed and nothing changes.
    """
    with torch.no_grad():
        return call_on_meta(_FeatureShapes(network), torch.empty(2, *image, device="meta"))


class _UnpooledShape(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Shape:
        maps = forward_features(self.network, images, FeatureSpec(unpooled=True)).unpooled
        assert maps is not None
        return tuple(maps.shape[1:])


def unpooled_shape(network: Network, image: Shape) -> Shape:
    """Return the shape of the maps that the network's head pools, for one image; nothing is computed."""
    with torch.no_grad():
        return call_on_meta(_UnpooledShape(network), torch.empty(2, *image, device="meta"))


def call_on_meta(module: nn.Module, *arguments: Any) -> Any:
    """Call a module with meta tensors in place of its parameters and buffers, so that nothing is computed or changes.

    Except for counters, of which copies are used: BatchNorm without a momentum computes with their values. A module
    that needs values, as `item()` does, is called with real tensors instead, and left as it is; `arguments` are meta
    tensors, which become zeros, or no tensors.
    """
    replaced: dict[Tensor, Tensor] = {}
    by_name: dict[str, Tensor] = {}
    for path, each in module.named_modules():  # each module once: torch would not restore one with two paths
        for name, tensor in (*each._parameters.items(), *each._buffers.items()):
            if tensor is not None:
                by_name[f"{path}.{name}".removeprefix(".")] = replaced.setdefault(tensor, _on_meta(tensor))
    gradients = torch.is_grad_enabled()
    with trial(module), torch.set_grad_enabled(gradients):
        try:
            return functional_call(module, by_name, arguments, tie_weights=False)
        except Exception:  # a module can fail in any way; if it is wrong, it fails again
            device = next(iter(replaced), torch.empty(0)).device
            real = [torch.zeros_like(each, device=device) if isinstance(each, Tensor) else each for each in arguments]
            return module(*real)


@contextlib.contextmanager
def trial(module: nn.Module, training: bool | None = None) -> Iterator[None]:
    """Have `module` in this mode, without gradients and with a fixed random seed, while the block runs.

    `training` None leaves the modes of all modules as they are. Then modes, the content of buffers and all random
    states are as before.
    """
    modes = [(each, each.training) for each in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_meta]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # what a user's module may draw from
            if training is not None:
                module.train(training)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for buffer, content in buffers:
            if not torch.equal(buffer, content):  # a training step that uses it could not go on after a copy
                buffer.copy_(content)
        for each, mode in modes:
            each.training = mode


def _on_meta(tensor: Tensor) -> Tensor:
    is_counter = tensor.dtype == torch.int64 and not tensor.dim()
    return tensor.clone() if is_counter else torch.empty_like(tensor, device="meta")


def image_channels(network: Network) -> int:
    """Return the number of image channels that the network takes."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels


def channels(shape: Shape) -> int:
    """Return the number of channels of features with this shape."""
    return shape[0] if len(shape) == 3 else shape[-1]

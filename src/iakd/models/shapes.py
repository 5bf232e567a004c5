"""Shapes of features inside a network, found without computing any."""

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
        return functional_call(
            _FeatureShapes(network), meta_tensors(network, "network."), (torch.empty(2, *image, device="meta"),)
        )


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
        return functional_call(
            _UnpooledShape(network), meta_tensors(network, "network."), (torch.empty(2, *image, device="meta"),)
        )


def meta_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return meta tensors in place of a module's parameters and buffers, by name after `prefix`.

    Except for counters, of which copies are returned: BatchNorm without a momentum computes with their values.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        prefix + name: tensor.clone() if tensor.dtype == torch.int64 and not tensor.dim() else _on_meta(tensor)
        for name, tensor in tensors.items()
    }


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def image_channels(network: Network) -> int:
    """Return the number of image channels that the network takes."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels


def channels(shape: Shape) -> int:
    """Return the number of channels of features with this shape."""
    return shape[0] if len(shape) == 3 else shape[-1]

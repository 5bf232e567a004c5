"""The shapes of features inside a network, without computing any of them."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from iakd.models.features import FeatureSpec, forward_features
from iakd.models.network import Network

Shape = tuple[int, ...]  # of one image's features: (channels, height, width), or (tokens, channels)


class _Trace(nn.Module):
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
    """Shapes after the stem and after each block for one image of shape (channels, height, width).

    Parameters are stood in for by tensors without content, so nothing is computed and nothing changes.
    """
    with torch.no_grad():
        return functional_call(_Trace(network), hollow(network, "network."), (torch.empty(2, *image, device="meta"),))


class _Unpooled(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Shape:
        maps = forward_features(self.network, images, FeatureSpec(unpooled=True)).unpooled
        assert maps is not None
        return tuple(maps.shape[1:])


def unpooled_shape(network: Network, image: Shape) -> Shape:
    """Shape of the maps that the network's head pools, for one image; nothing is computed."""
    with torch.no_grad():
        return functional_call(
            _Unpooled(network), hollow(network, "network."), (torch.empty(2, *image, device="meta"),)
        )


def hollow(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Tensors without content in the place of a module's, by name after `prefix`."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {prefix + name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}


def image_channels(network: Network) -> int:
    """How many channels an image has that the network takes."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels


def channels(shape: Shape) -> int:
    """Number of channels of features of this shape."""
    return shape[0] if len(shape) == 3 else shape[-1]

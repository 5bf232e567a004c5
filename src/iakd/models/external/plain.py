"""Divide a user's own module, whatever class it is of, by a description or by one of those that fit libraries' models.

The parts are the module's own, so that what trains the network trains the module.
"""

from torch import nn

from iakd.errors import UserError
from iakd.models.external import timm, torchvision
from iakd.models.external.partition import Partition, can_split, is_equivalent, split_model
from iakd.models.network import Network
from iakd.models.shapes import Shape, feature_shapes, image_channels

KNOWN = (*(partition for partition, _ in torchvision.FAMILIES), *timm.PARTITIONS)


def as_network(module: nn.Module, image: tuple[int, int, int], parts: Partition | None, name: str) -> Network | None:
    """Return a module as a network with blocks; None if nothing describes how it is divided.

    `image` is (channels, height, width). The module computes on the CPU, and keeps its mode. Raises UserError, with the
    module's `name`, if it does not take such images, or if `parts` do not compute what it computes.
    """
    if isinstance(module, Network):
        if parts:
            raise UserError(f"the {name} is a network of iakd, which knows its blocks: leave out its parts")
        _check_channels(module, image, name)
        return module
    training = module.training
    try:
        for candidate in [parts] if parts else KNOWN:
            if can_split(module, candidate) and (network := _divided(module, image, candidate)):
                return network
    finally:
        module.train(training)
    if parts:
        raise UserError(
            f"the {name} does not compute what its parts compute, one after the other: each module that its `forward` "
            "applies must be in one of them, functions such as a flattening as modules, too"
        )
    return None


def undivided(module: nn.Module) -> Network:
    """Return a module as a network without blocks, for methods that look at outputs alone."""
    return Network(nn.Identity(), [], module)


def _divided(module: nn.Module, image: Shape, parts: Partition) -> Network | None:
    """Return the network of these parts, if it computes the same as the module."""
    try:
        network = split_model(module.eval(), parts, image)
        shapes = feature_shapes(network, image)
        same = is_equivalent(module, network, tuple(image))
    except UserError:
        raise
    except Exception:  # parts that do not fit together can fail in any way
        return None
    return network if same and all(len(shape) in (2, 3) for shape in shapes) else None


def _check_channels(network: Network, image: Shape, name: str) -> None:
    if image_channels(network) != image[0]:
        raise UserError(f"the {name} takes images of {image_channels(network)} channels, and these have {image[0]}")

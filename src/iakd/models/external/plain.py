"""Divide a user's own module, whatever class it is of, by a description or by one of those that fit libraries' models.

The parts are the module's own, so that what trains the network trains the module.
"""

import contextlib

from torch import nn

from iakd.errors import UserError, reason_of
from iakd.models.external import timm, torchvision
from iakd.models.external.partition import (
    Copy,
    Partition,
    check_inputs,
    copy_changed_inputs,
    is_equivalent,
    missing_module,
    split_model,
)
from iakd.models.network import Network
from iakd.models.shapes import Shape, feature_shapes, image_channels, trial

ALL_MODULES = (
    "each module that `forward` applies must be in one of them, functions such as a flattening as modules, too"
)
KNOWN = (*(partition for partition, _ in torchvision.FAMILIES), *timm.PARTITIONS)


def as_network(
    module: nn.Module, image: tuple[int, int, int], parts: Partition | None, name: str, trained: bool
) -> Network | None:
    """Return a module as a network with blocks; None if nothing describes how it is divided.

    `image` is (channels, height, width); `trained` says that the network is to be trained. The module computes on the
    CPU, and stays as it is. Raises UserError, with the module's `name`, if it does not take such images, or if `parts`
    do not compute what it computes.
    """
    if isinstance(module, Network):
        if parts:
            raise UserError(f"the {name} is a network of iakd, which knows its blocks: leave out its parts")
        _check_channels(module, image, name)
        check_inputs(module, image, f"the {name}")
        return module
    if parts:
        missing = missing_module(module, parts)
        if missing:
            raise UserError(f"{name}_parts: the {name} has no module {missing!r}")
        try:
            network = _divided(module, image, parts)
        except UserError:
            raise
        except Exception as error:  # parts that do not fit together can fail in any way
            reason = f"{type(error).__name__}: {reason_of(error)}"
            raise UserError(f"the {name} cannot be computed part by part ({reason}): {ALL_MODULES}") from None
        if network is not None and not network.blocks:
            raise UserError(f"{name}_parts: its blocks {parts.blocks} are no modules of the {name}")
        if network is None:
            raise UserError(f"the {name} does not compute what its parts compute, one after the other: {ALL_MODULES}")
        if trained:
            _check_training(module, network, image, name)
        return network
    for candidate in KNOWN:
        if missing_module(module, candidate) is not None:
            continue
        try:
            network = _divided(module, image, candidate)
        except UserError:
            raise
        except Exception:  # of another class than the family's, or not for such images
            continue
        if network and network.blocks:
            with contextlib.suppress(UserError):  # a class that does more than the family it is derived from
                if trained:
                    _check_training(module, network, image, name)
                return network
    return None


def undivided(module: nn.Module) -> Network:
    """Return a module as a network without blocks, for methods that look at outputs alone."""
    return Network(Copy(), [], module)


def _divided(module: nn.Module, image: Shape, parts: Partition) -> Network | None:
    """Return the network of these parts, if it computes the same as the module."""
    with trial(module, training=False):
        network = split_model(module, parts, image)
        copy_changed_inputs(network, image)
        shapes = feature_shapes(network, image)
    same = is_equivalent(module, network, tuple(image))
    return network if same and all(len(shape) in (2, 3) for shape in shapes) else None


def _check_training(module: nn.Module, network: Network, image: Shape, name: str) -> None:
    """Raise UserError if training the network does not train all of the module, as it would be trained by itself."""
    parts = {id(parameter) for parameter in network.parameters()}
    for path, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in parts:
            raise UserError(
                f"{name}_parts: {path!r}, a parameter of the {name}, is in none of its parts, so it would not be "
                "trained: make a module of what uses it, and name that"
            )
    try:
        same = is_equivalent(module, network, tuple(image), training=True)
    except Exception as error:  # a user's module can fail in any way
        reason = reason_of(error)
        raise UserError(f"the {name} cannot compute in training mode ({reason})") from None
    if not same:
        raise UserError(
            f"in training mode the {name} does not compute what its parts compute: make a module of what its "
            "`forward` does there besides, such as dropout, and name that"
        )


def _check_channels(network: Network, image: Shape, name: str) -> None:
    if image_channels(network) != image[0]:
        raise UserError(f"the {name} takes images of {image_channels(network)} channels, and these have {image[0]}")

"""Load the weights of a foreign checkpoint into a network, completely or not at all."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from iakd import config, models
from iakd.errors import UserError
from iakd.models.branches import normalised_convolutions
from iakd.models.checkpoint_matching import Ambiguous, NameMap, Shapes, bias_of, match
from iakd.models.checkpoint_mismatch import explain
from iakd.models.checkpoints import StateDict, read_checkpoint
from iakd.models.cifar.wrn import PreActivationBlock
from iakd.models.network import Network
from iakd.models.shapes import image_channels

log = logging.getLogger(__name__)


def load_external(settings: config.Network, channels: int, classes: int, path: Path, origin: str) -> Network:
    """Build the network that `settings` describe, with the weights in the file at `path`, whatever their names are
    there.

    Raises UserError, naming `origin`, if the file cannot be read or does not fit. If nothing else explains it, a table
    of the differences is logged first.
    """
    found = read_checkpoint(path, origin)
    network = fitted(settings, channels, classes, found, origin)
    if network is None:
        shapes = _shapes(found[0].tensors)
        raise UserError(f"{origin}: {explain(settings, channels, classes, shapes, found[0].ordered)}")
    return network


def fitted(
    settings: config.Network, channels: int, classes: int, found: list[StateDict], origin: str
) -> Network | None:
    """Build the network that `settings` describe, with the first weights among `found` that fit; None if none do.

    Raises UserError, naming `origin`, if they are damaged or fit in several ways.
    """
    network = models.build(settings, channels, classes)
    for each in found:
        names = _match(network, each, origin)
        if names is not None:
            _copy_weights(network, each.tensors, names, origin)
            inside = f", in {each.key_path}" if each.key_path else ""
            others = [other.key_path or "the file itself" for other in found if other is not each and other.tensors]
            if others:  # such as a moving average: which one was taken matters
                log.info("%s: the weights%s, not those in %s", origin, inside, ", ".join(others))
            return network
    return None


def _shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _match(network: Network, found: StateDict, origin: str) -> NameMap | None:
    try:
        return match(_shapes(network.state_dict()), _shapes(found.tensors), network.original_names, found.ordered)
    except Ambiguous as error:
        raise UserError(f"{origin}: {error}; save the state_dict with torch.save, straight from the model") from None


@torch.no_grad()
def _copy_weights(network: Network, tensors: dict[str, Tensor], names: NameMap, origin: str) -> None:
    shapes, used = _shapes(tensors), set(names.values())
    extra = {name: bias for name, other in names.items() if (bias := bias_of(other, shapes)) and bias not in used}
    for other in (*names.values(), *extra.values()):
        if not tensors[other].isfinite().all():
            raise UserError(f"{origin}: {other} has values that are not finite; take another checkpoint")
    for name, tensor in network.state_dict().items():
        if name in names:
            tensor.copy_(tensors[names[name]])
        else:  # a counter of batches, which old files do not have, or the bias of a convolution that has none there
            tensor.zero_()
    left = fold_biases(network, {name.removesuffix(".weight"): tensors[bias] for name, bias in extra.items()})
    for name in left:
        raise UserError(
            f"{origin}: {extra[f'{name}.weight']} is the bias of a convolution that has none here, and no BatchNorm "
            "follows it into which it could be folded; nothing was loaded"
        )


@torch.no_grad()
def fold_biases(network: Network, biases: Mapping[str, Tensor]) -> list[str]:
    """Let the network compute what it would if its convolutions had these biases; return those where it cannot.

    `biases` by the name of the convolution. BatchNorm subtracts its running mean, so the bias in front of it is
    subtracted from the mean. Between the blocks of a WRN there are bare sums, so what is added to one reaches the first
    BatchNorm of each later block, up to a shortcut that is a convolution.
    """
    if not biases:
        return []
    image = image_channels(network), network.size, network.size
    with torch.enable_grad():  # whose graph shows what reads what
        readers = dict(normalised_convolutions(network, image))
    left = {name: bias.float() for name, bias in biases.items()}
    for name in biases:
        norm = readers.get(cast(nn.Conv2d, network.get_submodule(name)))
        if norm is not None:
            _shift(norm, left.pop(name))
    if not left or not all(isinstance(block, PreActivationBlock) for block in network.blocks):
        return list(left)
    zero = torch.zeros(())
    total = left.pop("stem", zero)
    for stage, blocks in enumerate(network.stages):
        for position, block in enumerate(cast(Iterable[PreActivationBlock], blocks)):
            _shift(block.bn1, total)
            if block.shortcut is not None:
                total = block.shortcut.weight[:, :, 0, 0] @ total if block.raw_shortcut and total.dim() else zero
            for layer in ("conv2", "shortcut"):
                total = total + left.pop(f"stages.{stage}.{position}.{layer}", zero)
    _shift(cast(nn.BatchNorm2d, cast(nn.Sequential, network.head)[0]), total)
    return list(left)


def _shift(norm: nn.BatchNorm2d, bias: Tensor) -> None:
    """Let a BatchNorm treat its input as if `bias` (C,) had been added to it."""
    assert norm.running_mean is not None
    norm.running_mean -= bias

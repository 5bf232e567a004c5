"""Load the weights of a foreign checkpoint into a network, completely or not at all."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from iakd import config, models
from iakd.errors import UserError
from iakd.models.checkpoint_matching import Ambiguous, NameMap, Shapes, match
from iakd.models.checkpoint_mismatch import explain
from iakd.models.checkpoints import StateDict, read_checkpoint
from iakd.models.network import Network

log = logging.getLogger(__name__)


def load_external(settings: config.Network, channels: int, classes: int, path: Path, origin: str) -> Network:
    """Build the network that `settings` describe, with the weights in the file at `path`, whatever their names are
    there.

    Raises UserError, naming `origin`, if the file cannot be read or does not fit. If nothing else explains it, a table
    of the differences is logged first.
    """
    network = models.build(settings, channels, classes)
    found = read_checkpoint(path, origin)
    for each in found:
        names = _match(network, each, origin)
        if names is not None:
            _copy_weights(network, each.tensors, names, origin)
            inside = f", in {each.key_path}" if each.key_path else ""
            log.info("%s: the weights of %s%s", origin, settings.arch, inside)
            return network
    raise UserError(f"{origin}: {explain(settings, channels, classes, _shapes(found[0].tensors), found[0].ordered)}")


def _shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _match(network: Network, found: StateDict, origin: str) -> NameMap | None:
    try:
        return match(_shapes(network.state_dict()), _shapes(found.tensors), network.original_names, found.ordered)
    except Ambiguous as error:
        raise UserError(f"{origin}: {error}; save the state_dict with torch.save, straight from the model") from None


@torch.no_grad()
def _copy_weights(network: Network, tensors: dict[str, Tensor], names: NameMap, origin: str) -> None:
    for name, tensor in network.state_dict().items():
        if name not in names:  # a counter of batches, which old files do not have
            tensor.zero_()
            continue
        theirs = tensors[names[name]]
        if not theirs.isfinite().all():
            raise UserError(f"{origin}: {names[name]} has values that are not finite; take another checkpoint")
        tensor.copy_(theirs)

"""The zoo: networks that say what their stem, their stages of blocks and their head are."""

import json
from collections.abc import Callable

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from iakd import config
from iakd.errors import UserError
from iakd.models.cifar import mobilenetv2, resnet, shufflenet, vgg, wrn
from iakd.models.external import timm, torchvision
from iakd.models.network import Network
from iakd.models.quantisation import quantise

__all__ = ["ARCHITECTURES", "Network", "build", "load_weights", "save_weights"]

Builder = Callable[[config.Network, int, int], Network]

FAMILIES: tuple[tuple[list[str], Builder, set[str]], ...] = (  # architectures, builder, the settings it has a use for
    (resnet.ARCHITECTURES, resnet.build, {"width", "shortcut"}),
    (resnet.BOTTLENECK_ARCHITECTURES, resnet.build_bottleneck, {"width"}),
    (wrn.ARCHITECTURES, wrn.build, {"width"}),
    (vgg.ARCHITECTURES, vgg.build, {"width"}),
    (mobilenetv2.ARCHITECTURES, mobilenetv2.build, set()),
    (shufflenet.ARCHITECTURES, shufflenet.build, set()),
    (torchvision.ARCHITECTURES, torchvision.build, set()),
)
ARCHITECTURES = [arch for architectures, _, _ in FAMILIES for arch in architectures]


def build(network: config.Network, channels: int, classes: int) -> Network:
    """The network that the settings describe, for images of `channels` channels, not yet initialised.

    Raises UserError for an architecture that the zoo does not have, and for a setting that it has no use for.
    """
    built = _build(network, channels, classes)
    if network.bits:
        quantise(built, network.bits)
    return built


def _build(network: config.Network, channels: int, classes: int) -> Network:
    if network.arch.startswith(timm.PREFIX):
        _refuse_unused(network, set())
        return timm.build(network, channels, classes)
    for architectures, builder, settings in FAMILIES:
        if network.arch in architectures:
            _refuse_unused(network, settings)
            return builder(network, channels, classes)
    near = config.did_you_mean(network.arch, ARCHITECTURES)
    raise UserError(
        f"network {network.name}: unknown arch {network.arch!r}{near}; docs/networks.md lists those that are known"
    )


def _refuse_unused(network: config.Network, used: set[str]) -> None:
    for name, default in (("width", None), ("shortcut", "B")):
        if name not in used and getattr(network, name) != default:
            raise UserError(f"network {network.name}: {network.arch} comes with one {name} only; leave it out")


def save_weights(network: Network) -> bytes:
    """Parameters and buffers as safetensors.

    The normalisation of the images that these weights know, where it is known, goes along as metadata: JSON with `mean`
    and `std` per channel, for values from 0 to 1. It is one entry, because several come out in any order.
    """
    known = network.normalisation
    about = {"normalisation": json.dumps(known.model_dump())} if known else None
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return save_tensors(tensors, about)


def load_weights(network: Network, content: bytes, origin: str) -> None:
    """Load what `save_weights` made into `network`. Raises UserError, naming `origin`, where it does not fit."""
    try:
        network.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{origin}: these weights do not fit the network in the settings ({reason})") from None

"""The model zoo: networks divided into a stem, stages of blocks and a head."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import cast

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from iakd import config
from iakd.config.networks import family_of
from iakd.errors import UserError, reason_of
from iakd.models.cifar import mobilenetv2, resnet, shufflenet, vgg, wrn
from iakd.models.external import torchvision
from iakd.models.external.partition import check_inputs, check_outputs
from iakd.models.network import Network
from iakd.models.quantisation import quantise
from iakd.models.variants import apply_variants
from iakd.plugins import NetworkFamily, import_object

__all__ = ["ARCHITECTURES", "Network", "build", "load_weights", "save_weights"]

Builder = Callable[[config.Network, int, int], Network]


def _family(module: ModuleType, architectures: list[str], *settings: str, builder: str = "build") -> NetworkFamily:
    return NetworkFamily(f"{module.__name__}:{builder}", tuple(architectures), frozenset(settings))


OWN_FAMILIES = (  # those of other packages: config.networks
    _family(resnet, resnet.ARCHITECTURES, "width", "shortcut", "variant"),
    _family(resnet, resnet.BOTTLENECK_ARCHITECTURES, "width", "variant", builder="build_bottleneck"),
    _family(wrn, wrn.ARCHITECTURES, "width", "variant"),
    _family(vgg, vgg.ARCHITECTURES, "width", "variant"),
    _family(mobilenetv2, mobilenetv2.ARCHITECTURES, "variant"),
    _family(shufflenet, shufflenet.ARCHITECTURES),
)
ARCHITECTURES = [arch for family in OWN_FAMILIES for arch in family.architectures] + torchvision.ARCHITECTURES


def build(network: config.Network, channels: int, classes: int) -> Network:
    """Build the network that the settings describe, for images with `channels` channels; its weights are torch's own.

    Raises UserError for an unknown architecture, and for a setting that the architecture does not use.
    """
    if isinstance(network, config.Teacher) and network.black_box:
        from iakd.models.external import black_box

        return black_box.build(network)
    family = family_of(network.arch) or _own_family(network)
    if "pool_every_group" in network.variant and not network.arch.startswith("vgg"):
        raise UserError(f"network {network.name}: variant pool_every_group is a form of VGG; leave it out")
    for name, default in (("width", None), ("shortcut", "B"), ("variant", [])):
        if name not in family.settings and getattr(network, name) != default:
            raise UserError(f"network {network.name}: {network.arch} comes with one {name} only; leave it out")
    builder = cast(Builder, import_object(family.builder))
    built = builder(network, channels, classes)
    if not isinstance(built, Network):
        raise UserError(f"network {network.name}: {family.builder} returned a {type(built).__name__}, not a Network")
    if not family.builder.startswith("iakd."):
        image, name = (channels, built.size, built.size), f"network {network.name}"
        check_outputs(built, image, classes, name)
        check_inputs(built, image, name)
    apply_variants(built, network)
    if network.bits:
        quantise(built, network.bits)
    return built


def _own_family(network: config.Network) -> NetworkFamily:
    for family in OWN_FAMILIES:
        if network.arch in family.architectures:
            return family
    near = config.did_you_mean(network.arch, ARCHITECTURES)
    raise UserError(
        f"network {network.name}: unknown arch {network.arch!r}{near}; docs/networks.md lists the known ones"
    )


def save_weights(network: Network) -> bytes:
    """Return parameters and buffers as the content of a safetensors file.

    If the normalisation of the network's images is known, it is added as metadata: JSON with `mean` and `std` per
    channel, for values from 0 to 1. It is a single entry, because safetensors does not keep the order of several.
    """
    normalisation = network.normalisation
    metadata = {"normalisation": json.dumps(normalisation.model_dump())} if normalisation else None
    tensors: dict[str, Tensor] = {}
    shared: set[int] = set()  # memory: safetensors refuses tensors that share some, as tied layers of a black box do
    for name, tensor in network.state_dict().items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        tensors[name] = own.clone() if place in shared else own
        shared.add(place)
    return save_tensors(tensors, metadata)


def load_weights(network: Network, content: bytes, origin: str) -> None:
    """Load the result of `save_weights` into `network`. Raises UserError, naming `origin`, if it does not fit."""
    try:
        network.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        reason = reason_of(error)
        raise UserError(f"{origin}: these weights do not fit the network in the settings ({reason})") from None

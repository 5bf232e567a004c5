"""The zoo: networks that say what their stem, their stages of blocks and their head are."""

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from iakd import params
from iakd.errors import UserError
from iakd.models import resnet
from iakd.models.network import Network

__all__ = ["Network", "build", "load_weights", "save_weights"]


def build(network: params.Network, channels: int, classes: int) -> Network:
    """The network that the settings describe, for images of `channels` channels, not yet initialised.

    Raises UserError for an architecture that the zoo does not have.
    """
    if network.arch in resnet.ARCHITECTURES:
        return resnet.build(network.arch, network.width, network.shortcut, channels, classes)
    near = params.did_you_mean(network.arch, resnet.ARCHITECTURES)
    raise UserError(
        f"network {network.name}: unknown arch {network.arch!r}{near}; known: {', '.join(resnet.ARCHITECTURES)}"
    )


def save_weights(network: Network) -> bytes:
    """Parameters and buffers as safetensors."""
    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


def load_weights(network: Network, content: bytes, origin: str) -> None:
    """Load what `save_weights` made into `network`. Raises UserError, naming `origin`, where it does not fit."""
    try:
        network.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{origin}: these weights do not fit the network in the settings ({reason})") from None

"""Images that a data set normalises in one way, for a network that knows them in another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iakd.config import Normalisation
from iakd.errors import UserError
from iakd.models.network import Network
from iakd.models.shapes import image_channels


class Renormalise(nn.Module):
    """Images (B, C, H, W) normalised by `data` → the same normalised by `own`, in float32.

    The numbers are no part of the state_dict, which stays a plain network's.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, data: Normalisation, own: Normalisation, channels: int) -> None:
        super().__init__()
        (mean, std), (own_mean, own_std) = (
            (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in both.of_channels(channels))
            for both in (data, own)
        )
        scale, shift = std / own_std, (mean - own_mean) / own_std  # ((x·std + mean) − own_mean) / own_std
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.float() * self.scale + self.shift


def adapt_input(network: Network, own: Normalisation | None, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let `network` take images normalised by `mean` and `std`, although it knows those normalised by `own`.

    None: the same. Raises UserError where `own` is of another number of channels.
    """
    data = Normalisation(mean=list(mean), std=list(std))
    try:
        network.input = _between(data, own or data, len(mean))
    except ValueError as error:
        raise UserError(f"normalisation of the teacher: it {error}; give one number for each channel") from None
    network.normalisation = own or data


def entry(student: Network, teacher: Network) -> list[nn.Module]:
    """What the teacher's first block needs before it in the place of the student's: mostly nothing.

    Where both networks have no stem (VGG), the block takes the image itself, normalised as the teacher knows it.
    """
    bare = all(isinstance(network.stem, nn.Identity) for network in (student, teacher))
    if not bare or student.normalisation is None or teacher.normalisation is None:
        return []
    step = _between(student.normalisation, teacher.normalisation, image_channels(teacher))
    return [] if isinstance(step, nn.Identity) else [step.to(next(teacher.parameters()).device)]


def _between(data: Normalisation, own: Normalisation, channels: int) -> nn.Module:
    if own.of_channels(channels) == data.of_channels(channels):
        return nn.Identity()
    return Renormalise(data, own, channels)

"""Convert images that the data set normalises in one way for a network that was trained with another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iakd.config import Normalisation
from iakd.errors import UserError
from iakd.models.network import Network
from iakd.models.shapes import image_channels


class Renormalise(nn.Module):
    """Images (B, C, H, W) normalised by `data` → the same images normalised by `own`, in float32.

    The factors are not part of the state_dict, which stays the plain network's.
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
    """Let `network`, trained on images normalised by `own`, take images normalised by `mean` and `std`.

    `own` None: no difference. Raises UserError if `own` has a different number of channels.
    """
    data = Normalisation(mean=list(mean), std=list(std))
    try:
        network.input = _conversion(data, own or data, len(mean))
    except ValueError as error:
        raise UserError(f"normalisation of the teacher: it {error}; give one number for each channel") from None
    network.normalisation = own or data


def input_conversion(student: Network, teacher: Network) -> list[nn.Module]:
    """Return what the teacher's first block needs before it when it replaces the student's; usually nothing.

    If neither network has a stem (VGG), the block takes the image itself, which must be normalised as the teacher
    expects.
    """
    no_stems = all(isinstance(network.stem, nn.Identity) for network in (student, teacher))
    if not no_stems or student.normalisation is None or teacher.normalisation is None:
        return []
    conversion = _conversion(student.normalisation, teacher.normalisation, image_channels(teacher))
    return [] if isinstance(conversion, nn.Identity) else [conversion.to(next(teacher.parameters()).device)]


def _conversion(data: Normalisation, own: Normalisation, channels: int) -> nn.Module:
    if own.of_channels(channels) == data.of_channels(channels):
        return nn.Identity()
    return Renormalise(data, own, channels)

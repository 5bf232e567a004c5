"""RandAugment (Cubuk et al. 2020) and TrivialAugment Wide (Müller and Hutter 2021), with torchvision's ranges.

Both change an image by operations drawn at random from the same fourteen: RandAugment by several of one magnitude,
TrivialAugment by one of any magnitude.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iakd.data.augmentation import affine, colour
from iakd.data.draws import moved
from iakd.params import Augment

BINS = 31  # magnitudes of an operation

Kernel = Callable[[Tensor, Tensor], Tensor]
KERNELS: tuple[Kernel | None, ...] = (  # of images that get the same, one call does them all
    None,
    affine.affine,
    colour.brightness,
    colour.colour,
    colour.contrast,
    colour.sharpness,
    colour.posterize,
    colour.solarize,
    colour.autocontrast,
    colour.equalize,
)


@dataclass(frozen=True)
class Operation:
    """`kernel`: its position in KERNELS; `signed`: whether half of the magnitudes are negated; `values` of the bins.

    `matrices` makes the kernel's argument from magnitudes; where there is none, `offset` + magnitude is it.
    """

    kernel: int
    values: Tensor
    signed: bool = False
    offset: float = 0.0
    matrices: Callable[[Tensor, tuple[int, int]], Tensor] | None = None


def operations(augment: Augment, size: tuple[int, int]) -> list[Operation]:
    """The fourteen operations with the ranges of `augment.policy`, for images of `size` (height, width)."""
    wide = augment.policy == "trivialaugment"
    height, width = size
    shear, turn, blend, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    across, down = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)

    def up_to(highest: float) -> Tensor:
        return torch.linspace(0.0, highest, BINS)

    none = torch.zeros(BINS)
    posterize = 8 - (torch.arange(BINS) / ((BINS - 1) / bits)).round()
    return [
        Operation(0, none),
        Operation(1, up_to(shear), True, matrices=affine.shear_x),
        Operation(1, up_to(shear), True, matrices=affine.shear_y),
        Operation(1, up_to(across), True, matrices=affine.translate_x),
        Operation(1, up_to(down), True, matrices=affine.translate_y),
        Operation(1, up_to(turn), True, matrices=affine.rotate),
        *(Operation(kernel, up_to(blend), True, offset=1.0) for kernel in (2, 3, 4, 5)),
        Operation(6, posterize),
        Operation(7, torch.linspace(255.0, 0.0, BINS)),
        Operation(8, none),
        Operation(9, none),
    ]


class Policy:
    """What a policy does at each of the `n` positions of an epoch; drawn from `draws`, on the CPU."""

    def __init__(
        self, augment: Augment, size: tuple[int, int], n: int, draws: torch.Generator, device: torch.device
    ) -> None:
        self.device = device
        self._layers: list[tuple[Tensor, Tensor, Tensor]] = []
        every = operations(augment, size)
        for _ in range(augment.operations if augment.policy == "randaugment" else 1):
            chosen = torch.randint(len(every), (n,), generator=draws)
            bins = torch.randint(BINS, (n,), generator=draws)
            signs = 1 - 2 * torch.randint(2, (n,), generator=draws)
            if augment.policy == "randaugment":
                bins.fill_(augment.magnitude)
            self._layers.append(_arguments(every, chosen, bins, signs, size, device))

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Images uint8 (B, C, H, W) at the positions `part`, changed.

        Which image gets which kernel is known on the CPU: the device is told, and never asked.
        """
        for kernels, amounts, matrices in self._layers:
            order = kernels[part].argsort(stable=True)
            sizes = kernels[part].bincount(minlength=len(KERNELS)).tolist()
            back = moved(order.argsort(), self.device)
            order = moved(order, self.device)
            pieces = zip(
                KERNELS,
                images.index_select(0, order).split(sizes),
                amounts[part].index_select(0, order).split(sizes),
                matrices[part].index_select(0, order).split(sizes),
                strict=True,
            )
            done = [
                piece if kernel is None or not len(piece) else kernel(piece, m if kernel is affine.affine else a)
                for kernel, piece, a, m in pieces
            ]
            images = torch.cat(done).index_select(0, back)
        return images


def _arguments(
    every: list[Operation], chosen: Tensor, bins: Tensor, signs: Tensor, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """For each position: its kernel, on the CPU; amount and matrix, on the device."""
    values = torch.stack([operation.values for operation in every]).double()[chosen, bins]
    signed = torch.tensor([operation.signed for operation in every])[chosen]
    values = torch.where(signed, values * signs, values)
    matrices = torch.zeros(len(chosen), 2, 3)
    for position, operation in enumerate(every):
        if operation.matrices:
            there = chosen == position
            matrices[there] = operation.matrices(values[there], size)
    kernels = torch.tensor([operation.kernel for operation in every])[chosen]
    amounts = values + torch.tensor([operation.offset for operation in every]).double()[chosen]
    return kernels, moved(amounts, device), moved(matrices, device)

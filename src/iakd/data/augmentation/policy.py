"""Shears, translations and rotations: where each pixel comes from, and fetching it.

A matrix (2, 3) gives, for a pixel at (x, y, 1) from the image's centre, the place (x', y') that its level is taken
from, in units of half the image's sides. Matrices, float32 (B, 2, 3), are made on the CPU for images of a `size`
(height, width).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iakd.config import Augment
from iakd.devices import to_device


def shear_x(amounts: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows shifted left by `amounts`, float64 (B,), times their distance from the upper edge."""
    return _matrices(size, xy=amounts, x1=amounts * (size[0] / 2))


def shear_y(amounts: Tensor, size: tuple[int, int]) -> Tensor:
    """Columns shifted up by `amounts` times their distance from the left edge."""
    return _matrices(size, yx=amounts, y1=amounts * (size[1] / 2))


def translate_x(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """To the right by `pixels`, rounded towards 0."""
    return _matrices(size, x1=-pixels.trunc())


def translate_y(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Down by `pixels`, rounded towards 0."""
    return _matrices(size, y1=-pixels.trunc())


def rotate(degrees: Tensor, size: tuple[int, int]) -> Tensor:
    """Counter-clockwise about the centre."""
    cosine, sine = torch.cos(degrees.deg2rad()), torch.sin(degrees.deg2rad())
    return _matrices(size, xx=cosine, xy=-sine, yx=sine, yy=cosine)


def _matrices(size: tuple[int, int], **entries: Tensor) -> Tensor:
    """From named entries (B,), the others being those of the identity."""
    one = torch.ones_like(next(iter(entries.values())))
    rows = [[entries.get(f"{row}{column}", one * (row == column)) for column in "xy1"] for row in "xy"]
    matrices = torch.stack([torch.stack(row, 1) for row in rows], 1).float()
    return matrices / torch.tensor([size[1] / 2, size[0] / 2]).view(1, 2, 1)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Images uint8 (B, C, H, W), each pixel taken from the nearest to where `matrices` (B, 2, 3) say; 0 from outside.

    Elementwise, as a product of matrices could round an image differently in another batch.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    a, b, c = matrices.unsqueeze(1).unsqueeze(1).unbind(-1)  # each (B, 1, 1, 2)
    grid = a * x.view(1, 1, -1, 1) + b * y.view(1, -1, 1, 1) + c
    taken = F.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return taken.to(torch.uint8)


TOP = 255.0  # the highest level


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """`factors` times as bright; 1 changes nothing, 0 gives black."""
    return _levels(images * _column(factors))


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Saturation `factors` times as strong; 0 gives grey. Images that are grey stay as they are."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Differences from the image's mean grey `factors` times as large."""
    grey = _grey(images)
    mean = (grey.double().sum((1, 2, 3), keepdim=True) / grey[0].numel()).float()  # of whole numbers: an exact sum
    return _blend(images, mean, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Away from (above 1) or towards (below 1) the image smoothed by 3×3 pixels; the border stays."""
    if min(images.shape[-2:]) <= 2:
        return images
    values = images.float()
    centre = values[:, :, 1:-1, 1:-1]
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    boxes = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = ((boxes + 4 * centre) / 13).round_()  # the centre counts five times
    centre += (smooth - centre) * _column(1 - factors)
    return _levels(values)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the `bits` highest bits of each level."""
    return images & _column((256 - 2.0 ** (8 - bits)).to(torch.uint8), torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Levels from `thresholds` on inverted."""
    return images ^ (images >= _column(thresholds)).to(torch.uint8) * 255  # torch.where is far slower


def autocontrast(images: Tensor, unused: Tensor) -> Tensor:
    """Each channel stretched to the whole range; one of a single level stays."""
    low, high = (edge.float() for edge in (images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)))
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / TOP))
    return _levels((images - torch.where(flat, 0.0, low)) / scale)


def equalize(images: Tensor, unused: Tensor) -> Tensor:
    """Each channel's levels spread as evenly as may be (by PIL's rule, in whole numbers)."""
    flat = images.flatten(0, 1).flatten(1).long()  # (B·C, pixels)
    counts = torch.zeros(len(flat), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    below = counts.cumsum(1)
    last = counts.gather(1, flat.amax(1, keepdim=True))  # pixels of the highest level
    step = (flat.shape[1] - last) // 255
    table = (below - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table.clamp_(max=255))
    return table.to(torch.uint8).gather(1, flat).view_as(images)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """factor·image + (1 - factor)·other."""
    return _levels(images * _column(factors) + others * _column(1 - factors))


def _grey(images: Tensor) -> Tensor:
    """Whole grey levels float32 (B, 1, H, W), rounded down (ITU-R 601)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()


def _levels(values: Tensor) -> Tensor:
    """uint8 from floating-point levels, which are cut to 0–255 and rounded down."""
    return values.clamp_(0, TOP).to(torch.uint8)


def _column(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.to(dtype).view(-1, 1, 1, 1)


BINS = 31  # magnitudes of an operation

Kernel = Callable[[Tensor, Tensor], Tensor]
KERNELS: tuple[Kernel | None, ...] = (  # of images that get the same, one call does them all
    None,
    affine,
    brightness,
    colour,
    contrast,
    sharpness,
    posterize,
    solarize,
    autocontrast,
    equalize,
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
        Operation(1, up_to(shear), True, matrices=shear_x),
        Operation(1, up_to(shear), True, matrices=shear_y),
        Operation(1, up_to(across), True, matrices=translate_x),
        Operation(1, up_to(down), True, matrices=translate_y),
        Operation(1, up_to(turn), True, matrices=rotate),
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
            back = to_device(order.argsort(), self.device)
            order = to_device(order, self.device)
            pieces = zip(
                KERNELS,
                images.index_select(0, order).split(sizes),
                amounts[part].index_select(0, order).split(sizes),
                matrices[part].index_select(0, order).split(sizes),
                strict=True,
            )
            done = [
                piece if kernel is None or not len(piece) else kernel(piece, m if kernel is affine else a)
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
    return kernels, to_device(amounts, device), to_device(matrices, device)

"""RandAugment and TrivialAugment: their geometric and colour operations, vectorised.

A matrix (2, 3) maps a pixel (x, y, 1), relative to the image's centre, to the position (x', y') its value is taken
from, in units of half the image's sides. Matrices, float32 (B, 2, 3), are computed on the CPU for images of a `size`
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
    """Shift rows left by `amounts`, float64 (B,), times their distance from the upper edge."""
    return _matrices(size, xy=amounts, x1=amounts * (size[0] / 2))


def shear_y(amounts: Tensor, size: tuple[int, int]) -> Tensor:
    """Shift columns up by `amounts`, float64 (B,), times their distance from the left edge."""
    return _matrices(size, yx=amounts, y1=amounts * (size[1] / 2))


def translate_x(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Shift to the right by `pixels`, rounded towards 0."""
    return _matrices(size, x1=-pixels.trunc())


def translate_y(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Shift down by `pixels`, rounded towards 0."""
    return _matrices(size, y1=-pixels.trunc())


def rotate(degrees: Tensor, size: tuple[int, int]) -> Tensor:
    """Rotate counter-clockwise around the centre."""
    cosine, sine = torch.cos(degrees.deg2rad()), torch.sin(degrees.deg2rad())
    return _matrices(size, xx=cosine, xy=-sine, yx=sine, yy=cosine)


def _matrices(size: tuple[int, int], **entries: Tensor) -> Tensor:
    """Return matrices from named entries (B,); the other entries are the identity's."""
    one = torch.ones_like(next(iter(entries.values())))
    rows = [[entries.get(f"{row}{column}", one * (row == column)) for column in "xy1"] for row in "xy"]
    matrices = torch.stack([torch.stack(row, 1) for row in rows], 1).float()
    return matrices / torch.tensor([size[1] / 2, size[0] / 2]).view(1, 2, 1)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Take each pixel of images uint8 (B, C, H, W) from the nearest position that `matrices` (B, 2, 3) give; 0 from
    outside.

    Elementwise, because a matrix product could round differently in another batch.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    a, b, c = matrices.unsqueeze(1).unsqueeze(1).unbind(-1)  # each (B, 1, 1, 2)
    grid = a * x.view(1, 1, -1, 1) + b * y.view(1, -1, 1, 1) + c
    sampled = F.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return sampled.to(torch.uint8)


MAX_LEVEL = 255.0  # the highest grey level


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the brightness by `factors`; 1 changes nothing, 0 gives black."""
    return _to_uint8(images * _per_image(factors))


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the saturation by `factors`; 0 gives grey. Grey images do not change."""
    return images if images.shape[1] == 1 else _interpolate(images, _grey(images), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale differences from the image's mean grey level by `factors`."""
    grey = _grey(images)
    mean = (grey.double().sum((1, 2, 3), keepdim=True) / grey[0].numel()).float()  # the sum of integers is exact
    return _interpolate(images, mean, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from (above 1) or towards (below 1) the image smoothed over 3×3 pixels; the border does not change."""
    if min(images.shape[-2:]) <= 2:
        return images
    values = images.float()
    centre = values[:, :, 1:-1, 1:-1]
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    boxes = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = ((boxes + 4 * centre) / 13).round_()  # the centre counts five times
    centre += (smooth - centre) * _per_image(1 - factors)
    return _to_uint8(values)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` highest bits of each value."""
    return images & _per_image((256 - 2.0 ** (8 - bits)).to(torch.uint8), torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert values from `thresholds` on."""
    return images ^ (images >= _per_image(thresholds)).to(torch.uint8) * 255  # torch.where is much slower


def autocontrast(images: Tensor, unused: Tensor) -> Tensor:
    """Stretch each channel to the whole range; a channel with a single value does not change."""
    low, high = (edge.float() for edge in (images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)))
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / MAX_LEVEL))
    return _to_uint8((images - torch.where(flat, 0.0, low)) / scale)


def equalize(images: Tensor, unused: Tensor) -> Tensor:
    """Equalise the histogram of each channel (by PIL's rule, in integers)."""
    flat = images.flatten(0, 1).flatten(1).long()  # (B·C, pixels)
    counts = torch.zeros(len(flat), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    below = counts.cumsum(1)
    last = counts.gather(1, flat.amax(1, keepdim=True))  # pixels with the highest value
    step = (flat.shape[1] - last) // 255
    table = (below - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table.clamp_(max=255))
    return table.to(torch.uint8).gather(1, flat).view_as(images)


def _interpolate(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Return factor·image + (1 - factor)·other."""
    return _to_uint8(images * _per_image(factors) + others * _per_image(1 - factors))


def _grey(images: Tensor) -> Tensor:
    """Return integer grey levels float32 (B, 1, H, W), rounded down (ITU-R 601)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()


def _to_uint8(values: Tensor) -> Tensor:
    """Clip floating-point levels to 0–255 and round them down to uint8."""
    return values.clamp_(0, MAX_LEVEL).to(torch.uint8)


def _per_image(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return values (B,) as (B, 1, 1, 1)."""
    return values.to(dtype).view(-1, 1, 1, 1)


BINS = 31  # magnitudes per operation

Kernel = Callable[[Tensor, Tensor], Tensor]
KERNELS: tuple[Kernel | None, ...] = (  # all images with the same operation are processed in one call
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
    """`kernel`: its index in KERNELS; `values`: the magnitude of each bin; `signed`: whether half of the draws are
    negated.

    The kernel's argument is `matrices` of the magnitude or, without that function, `offset` + magnitude.
    """

    kernel: int
    values: Tensor
    signed: bool = False
    offset: float = 0.0
    matrices: Callable[[Tensor, tuple[int, int]], Tensor] | None = None


def operations(augment: Augment, size: tuple[int, int]) -> list[Operation]:
    """Return the fourteen operations with the ranges of `augment.policy`, for images of `size` (height, width)."""
    trivial = augment.policy == "trivialaugment"
    height, width = size
    shear, angle, blend, bits = (0.99, 135.0, 0.99, 6) if trivial else (0.3, 30.0, 0.9, 4)
    max_x, max_y = (32.0, 32.0) if trivial else (150 / 331 * width, 150 / 331 * height)

    def up_to(highest: float) -> Tensor:
        return torch.linspace(0.0, highest, BINS)

    no_magnitude = torch.zeros(BINS)
    posterize = 8 - (torch.arange(BINS) / ((BINS - 1) / bits)).round()
    return [
        Operation(0, no_magnitude),
        Operation(1, up_to(shear), True, matrices=shear_x),
        Operation(1, up_to(shear), True, matrices=shear_y),
        Operation(1, up_to(max_x), True, matrices=translate_x),
        Operation(1, up_to(max_y), True, matrices=translate_y),
        Operation(1, up_to(angle), True, matrices=rotate),
        *(Operation(kernel, up_to(blend), True, offset=1.0) for kernel in (2, 3, 4, 5)),
        Operation(6, posterize),
        Operation(7, torch.linspace(255.0, 0.0, BINS)),
        Operation(8, no_magnitude),
        Operation(9, no_magnitude),
    ]


class Policy:
    """The operations at each of the `n` positions of an epoch, drawn from `draws` on the CPU."""

    def __init__(
        self, augment: Augment, size: tuple[int, int], n: int, draws: torch.Generator, device: torch.device
    ) -> None:
        self.device = device
        self._layers: list[tuple[Tensor, Tensor, Tensor]] = []
        all_operations = operations(augment, size)
        for _ in range(augment.operations if augment.policy == "randaugment" else 1):
            indices = torch.randint(len(all_operations), (n,), generator=draws)
            bins = torch.randint(BINS, (n,), generator=draws)
            signs = 1 - 2 * torch.randint(2, (n,), generator=draws)
            if augment.policy == "randaugment":
                bins.fill_(augment.magnitude)
            self._layers.append(_arguments(all_operations, indices, bins, signs, size, device))

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Apply the operations to images uint8 (B, C, H, W) at the positions `part`.

        The grouping of images by kernel is computed on the CPU, so the device is never synchronised.
        """
        for kernels, amounts, matrices in self._layers:
            order = kernels[part].argsort(stable=True)
            sizes = kernels[part].bincount(minlength=len(KERNELS)).tolist()
            back = to_device(order.argsort(), self.device)
            order = to_device(order, self.device)
            groups = zip(
                KERNELS,
                images.index_select(0, order).split(sizes),
                amounts[part].index_select(0, order).split(sizes),
                matrices[part].index_select(0, order).split(sizes),
                strict=True,
            )
            results = [
                group if kernel is None or not len(group) else kernel(group, m if kernel is affine else a)
                for kernel, group, a, m in groups
            ]
            images = torch.cat(results).index_select(0, back)
        return images


def _arguments(
    all_operations: list[Operation],
    indices: Tensor,
    bins: Tensor,
    signs: Tensor,
    size: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each position its kernel, on the CPU, and its amount and matrix, on the device."""
    values = torch.stack([operation.values for operation in all_operations]).double()[indices, bins]
    signed = torch.tensor([operation.signed for operation in all_operations])[indices]
    values = torch.where(signed, values * signs, values)
    matrices = torch.zeros(len(indices), 2, 3)
    for position, operation in enumerate(all_operations):
        if operation.matrices:
            is_chosen = indices == position
            matrices[is_chosen] = operation.matrices(values[is_chosen], size)
    kernels = torch.tensor([operation.kernel for operation in all_operations])[indices]
    amounts = values + torch.tensor([operation.offset for operation in all_operations]).double()[indices]
    return kernels, to_device(amounts, device), to_device(matrices, device)

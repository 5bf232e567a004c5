"""Shears, translations and rotations: where each pixel comes from, and fetching it.

A matrix (2, 3) gives, for a pixel at (x, y, 1) from the image's centre, the place (x', y') that its level is taken
from, in units of half the image's sides. Matrices, float32 (B, 2, 3), are made on the CPU for images of a `size`
(height, width).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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

"""Rectangles of images that are blanked: random erasing and cutout."""

import math

import torch
from torch import Tensor

from iakd.params import Erase

TRIES = 10  # to find a rectangle that fits


def erasing_boxes(erase: Erase, size: tuple[int, int], n: int, draws: torch.Generator) -> Tensor:
    """Boxes of random erasing (Zhong et al. 2020), (n, 4): top, left, bottom, right; empty where nothing is erased.

    A share of the area and a ratio of height to width (its logarithm uniform) are drawn until the rectangle fits.
    """
    height, width = size
    wanted = torch.rand(n, generator=draws, dtype=torch.float64) < erase.probability
    areas, ratios = torch.rand(2, TRIES, n, generator=draws, dtype=torch.float64)
    corners = torch.rand(2, n, generator=draws, dtype=torch.float64)
    areas = height * width * (erase.scale[0] + (erase.scale[1] - erase.scale[0]) * areas)
    low, high = (math.log(ratio) for ratio in erase.ratio)
    ratios = torch.exp(low + (high - low) * ratios)
    heights, widths = torch.sqrt(areas * ratios).round().long(), torch.sqrt(areas / ratios).round().long()
    fits = (heights < height) & (widths < width)
    first = fits.long().argmax(0, keepdim=True)
    there = wanted & fits.any(0)
    heights, widths = (sides.gather(0, first)[0] * there for sides in (heights, widths))
    top = (corners[0] * (height - heights + 1)).long()
    left = (corners[1] * (width - widths + 1)).long()
    return torch.stack((top, left, top + heights, left + widths), 1)


def cutout_boxes(side: int, size: tuple[int, int], n: int, draws: torch.Generator) -> Tensor:
    """Boxes of cutout (DeVries and Taylor 2017), (n, 4): squares about any pixel, maybe reaching over the border."""
    centres = torch.stack([torch.randint(length, (n,), generator=draws) for length in size], 1)
    return torch.cat((centres - side // 2, centres - side // 2 + side), 1)


def blank(images: Tensor, boxes: Tensor) -> Tensor:
    """Set images (B, C, H, W) to 0 within `boxes` (B, 4), in place."""
    height, width = images.shape[-2:]
    top, left, bottom, right = boxes.unsqueeze(-1).unbind(1)  # each (B, 1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return images.masked_fill_((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)

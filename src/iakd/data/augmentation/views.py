"""Padded crops and mirror images: finitely many views of each image, which have numbers.

The number of a view is (flip·(2·pad + 1) + top)·(2·pad + 1) + left, where (top, left) is the corner of the crop in the
padded image and flip is 1 where the crop is then mirrored, else 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from iakd.params import Augment


def number(augment: Augment, flips: Tensor, corners: Tensor) -> Tensor:
    """Numbers of views, int64 (B,), from flips (B,) and corners (2, B): top, left."""
    side = 2 * augment.pad + 1
    top, left = corners
    return (flips * side + top) * side + left if augment.flip else top * side + left


def view_images(images: Tensor, views: Tensor, augment: Augment) -> Tensor:
    """The views with numbers `views` (B,) of images uint8 (B, C, H, W), of the same shape."""
    side = 2 * augment.pad + 1
    if augment.pad:
        images = crop(images, augment.pad, torch.stack((views // side % side, views % side)))
    return mirror(images, views // side**2) if augment.flip else images


def crop(images: Tensor, pad: int, corners: Tensor) -> Tensor:
    """Crops of the old size from images (B, C, H, W) with `pad` zeros around; `corners` (2, B): top, left."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, corners[0], corners[1]]


def mirror(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W), mirrored left to right where `flips` (B,) is 1 and not 0."""
    both = torch.cat((images, images.flip(-1)))  # picking from both is far quicker than torch.where
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * flips)

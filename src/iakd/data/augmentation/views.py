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
    return shifted(images, augment, views // side**2, torch.stack((views // side % side, views % side)))


def shifted(images: Tensor, augment: Augment, flips: Tensor, corners: Tensor) -> Tensor:
    """Images (B, C, H, W), padded, cut at `corners` (2, B), then mirrored where `flips` (B,) is 1 and not 0.

    Of pad and flip, only what `augment` has is done.
    """
    top, left = corners
    if augment.flip:  # first, as it is quicker on whole images; the crop then begins at the mirrored place
        images = mirror(images, flips)
        left = left + flips * (2 * augment.pad - 2 * left)
    return crop(images, augment.pad, top, left) if augment.pad else images


def crop(images: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """Crops of the old size, with corners `top` and `left` (B,), from images (B, C, H, W) with `pad` zeros around.

    From its first pixel to its last, a crop is one stretch of the padded images' memory, so that one copy fetches it
    together with what lies between its rows. The result is a view that passes over this.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    rows, columns = padded.shape[2:]
    length = ((channels - 1) * rows + height - 1) * columns + width
    stretches = padded.as_strided((padded.numel() - length + 1, length), (1, 1))
    first = torch.arange(n, device=images.device) * (channels * rows * columns) + top * columns + left
    taken = stretches.index_select(0, first)
    return taken.as_strided((n, channels, height, width), (length, rows * columns, columns, 1))


def mirror(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W), mirrored left to right where `flips` (B,) is 1 and not 0."""
    both = torch.cat((images, images.flip(-1)))  # picking from both is far quicker than torch.where
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * flips)

"""Padded crops and mirrored images: each image has finitely many views, which are numbered.

The number of a view is (flip·(2·pad + 1) + top)·(2·pad + 1) + left. (top, left) is the corner of the crop in the padded
image; flip is 1 if the crop is mirrored, else 0.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from iakd.config import Augment, Erase
from iakd.data.augmentation.policy import Policy
from iakd.devices import to_device
from iakd.errors import UnsuitableSettings
from iakd.seeding import generator


def check_padding(augment: Augment, size: Sequence[int]) -> None:
    """Raise UnsuitableSettings if crops of images of `size` (height, width) could show nothing but padding."""
    height, width = size
    if augment.pad >= min(height, width):
        raise UnsuitableSettings(
            f"recipe.augment.pad: {augment.pad} pixels are too many for images of {height}×{width}: crops could show "
            "nothing of them"
        )


def view_numbers(augment: Augment, flips: Tensor, corners: Tensor) -> Tensor:
    """Return the numbers of views, int64 (B,), from flips (B,) and corners (2, B): top, left."""
    side = 2 * augment.pad + 1
    top, left = corners
    return (flips * side + top) * side + left if augment.flip else top * side + left


def view_images(images: Tensor, views: Tensor, augment: Augment) -> Tensor:
    """Return the views with numbers `views` (B,) of images uint8 (B, C, H, W), in the same shape."""
    side = 2 * augment.pad + 1
    return crop_and_flip(images, augment, views // side**2, torch.stack((views // side % side, views % side)))


def crop_and_flip(images: Tensor, augment: Augment, flips: Tensor, corners: Tensor) -> Tensor:
    """Pad images (B, C, H, W), crop them at `corners` (2, B), then mirror those with `flips` (B,) equal to 1.

    Padding and mirroring are skipped if `augment` does not have them.
    """
    top, left = corners
    if augment.flip:  # first, because it is faster on whole images; the crop then starts at the mirrored position
        images = mirror(images, flips)
        left = left + flips * (2 * augment.pad - 2 * left)
    return crop(images, augment.pad, top, left) if augment.pad else images


def crop(images: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """Crop images (B, C, H, W) padded with `pad` zeros back to their size, at the corners `top` and `left` (B,).

    From its first pixel to its last, a crop is contiguous in the padded images' memory except for the ends of rows, so
    a single copy fetches it together with them. The result is a view that skips them.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    rows, columns = padded.shape[2:]
    length = ((channels - 1) * rows + height - 1) * columns + width
    windows = padded.as_strided((padded.numel() - length + 1, length), (1, 1))
    first = torch.arange(n, device=images.device) * (channels * rows * columns) + top * columns + left
    crops = windows.index_select(0, first)
    return crops.as_strided((n, channels, height, width), (length, rows * columns, columns, 1))


def mirror(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror images (B, C, H, W) left to right where `flips` (B,) is 1."""
    both = torch.cat((images, images.flip(-1)))  # indexing both is much faster than torch.where
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * flips)


TRIES = 10  # to find a box that fits


def erasing_boxes(erase: Erase, size: tuple[int, int], n: int, draws: torch.Generator) -> Tensor:
    """Return the boxes of random erasing (Zhong et al. 2020), (n, 4): top, left, bottom, right; empty if nothing is
    erased.

    The fraction of the area is drawn uniformly, and the ratio of height to width log-uniformly, until the box fits.
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
    """Return the boxes of cutout (DeVries and Taylor 2017), (n, 4): squares around any pixel, clipped later."""
    centres = torch.stack([torch.randint(length, (n,), generator=draws) for length in size], 1)
    return torch.cat((centres - side // 2, centres - side // 2 + side), 1)


def blank(images: Tensor, boxes: Tensor) -> Tensor:
    """Set images (B, C, H, W) to 0 within `boxes` (B, 4), in place."""
    height, width = images.shape[-2:]
    top, left, bottom, right = boxes.unsqueeze(-1).unbind(1)  # each (B, 1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return images.masked_fill_((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


MixBox = tuple[int, int, int, int]  # top, left, bottom, right


class Mixing:
    """Mixup, CutMix, or a random one of the two for each batch, for the `n` positions of an epoch."""

    def __init__(self, augment: Augment, size: tuple[int, int], n: int, draws: torch.Generator) -> None:
        self.size = size
        self.kinds = [(name, kind) for name, kind in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if kind]
        self._uniform = torch.rand(n, 5, generator=draws, dtype=torch.float64)

    def draw(self, position: int) -> tuple[float, MixBox | None]:
        """Return the weight of the image itself for a batch that starts at `position`, and CutMix's box; 1 if nothing
        is mixed.
        """
        which, whether, share, y, x = self._uniform[position].tolist()
        name, kind = self.kinds[int(which * len(self.kinds))]
        if whether >= kind.probability:
            return 1.0, None
        from scipy.special import betaincinv  # imported here: slow, and few trainings mix

        own = float(betaincinv(kind.alpha, kind.alpha, share))
        if name == "mixup":
            return own, None
        height, width = self.size
        (top, bottom), (left, right) = (
            _clipped_interval(place, length, own) for place, length in ((y, height), (x, width))
        )
        return 1.0 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right)

    def apply(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Mix images float32 (B, C, H, W) at the positions `part`, each with the one before it in the batch.

        Returns the images, the labels int64 (B,) of the images mixed in, and the weights float32 (B,) of the images'
        own labels.
        """
        own, box = self.draw(part.start)
        before = images.roll(1, 0)
        if box:
            top, left, bottom, right = box
            images[:, :, top:bottom, left:right] = before[:, :, top:bottom, left:right]
        elif own < 1:
            images = images.mul_(own).add_(before.mul_(1 - own))
        return images, labels.roll(1, 0), torch.full(labels.shape, own, device=images.device)


def _clipped_interval(place: float, length: int, own: float) -> tuple[int, int]:
    """Return first and last+1 pixel of a box around any pixel, clipped at the border; its area is 1 - `own` if
    unclipped.
    """
    centre, half = int(place * length), int(0.5 * math.sqrt(1 - own) * length)
    return max(centre - half, 0), min(centre + half, length)


class Augmenter:
    """The random draws of an epoch with `n` positions, and their application to batches of images of `size` (height,
    width).

    Each kind of augmentation has a random stream of its own, (`stream`, kind, seed, epoch), drawn for the whole epoch
    on the CPU. A batch therefore depends on its positions only, not on earlier batches or the device, and one kind does
    not change the draws of another.
    """

    def __init__(
        self,
        augment: Augment,
        size: tuple[int, int],
        n: int,
        seed: int,
        epoch: int,
        device: torch.device,
        stream: str = "augment",
    ) -> None:
        check_padding(augment, size)
        self.augment = augment
        draws = generator(stream, seed, epoch)
        flips = torch.randint(2, (n,), generator=draws)
        corners = torch.randint(2 * augment.pad + 1, (2, n), generator=draws)
        self._flips, self._corners = to_device(flips, device), to_device(corners, device)
        # (n,) on the CPU: the number of the view at each position; None if there are not finitely many
        self.views = None if augment.views is None else view_numbers(augment, flips, corners)

        def of(kind: str) -> torch.Generator:
            return generator(stream, kind, seed, epoch)

        self._policy = None if augment.policy == "none" else Policy(augment, size, n, of("policy"), device)
        boxes = [cutout_boxes(augment.cutout, size, n, of("cutout"))] if augment.cutout else []
        boxes += [erasing_boxes(augment.erase, size, n, of("erase"))] if augment.erase else []
        self._boxes = [to_device(some, device) for some in boxes]
        self._mixing = Mixing(augment, size, n, of("mix")) if augment.mixes else None

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Crop, mirror and apply the policy to images uint8 (B, C, H, W) at the positions `part` (B of them).

        The result of each image is independent of the other images of its batch.
        """
        images = crop_and_flip(images, self.augment, self._flips[part], self._corners[:, part])
        return self._policy.apply(images, part) if self._policy else images

    def finish(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Erase, then mix, normalised images float32 (B, C, H, W) of a batch, in place.

        Returns the images, and the labels (B,) of the images mixed in with the weight (B,) of the own labels, or None
        twice.
        """
        for boxes in self._boxes:
            images = blank(images, boxes[part])
        return self._mixing.apply(images, labels, part) if self._mixing else (images, None, None)

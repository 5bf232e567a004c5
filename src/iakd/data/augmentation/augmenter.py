"""Padded crops and mirror images: finitely many views of each image, which have numbers.

The number of a view is (flip·(2·pad + 1) + top)·(2·pad + 1) + left, where (top, left) is the corner of the crop in the
padded image and flip is 1 where the crop is then mirrored, else 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from iakd.config import Augment, Erase
from iakd.data.augmentation.policy import Policy
from iakd.devices import to_device
from iakd.seeding import generator


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


MixBox = tuple[int, int, int, int]  # top, left, bottom, right


class Mixing:
    """Mixup, CutMix, or one of the two for each batch by lot, for the `n` positions of an epoch."""

    def __init__(self, augment: Augment, size: tuple[int, int], n: int, draws: torch.Generator) -> None:
        self.size = size
        self.kinds = [(name, kind) for name, kind in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if kind]
        self._uniform = torch.rand(n, 5, generator=draws, dtype=torch.float64)

    def draw(self, position: int) -> tuple[float, MixBox | None]:
        """Weight of the own image for a batch that begins at `position`, and CutMix's box; 1 where nothing is mixed."""
        which, whether, share, y, x = self._uniform[position].tolist()
        name, kind = self.kinds[int(which * len(self.kinds))]
        if whether >= kind.probability:
            return 1.0, None
        from scipy.special import betaincinv  # here, as few trainings mix and it is slow to import

        own = float(betaincinv(kind.alpha, kind.alpha, share))
        if name == "mixup":
            return own, None
        height, width = self.size
        (top, bottom), (left, right) = (_interval(place, length, own) for place, length in ((y, height), (x, width)))
        return 1.0 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right)

    def apply(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Images float32 (B, C, H, W) at the positions `part`, mixed; labels of those mixed in; weight of the own.

        Labels int64 (B,); weights float32 (B,).
        """
        own, box = self.draw(part.start)
        before = images.roll(1, 0)
        if box:
            top, left, bottom, right = box
            images[:, :, top:bottom, left:right] = before[:, :, top:bottom, left:right]
        elif own < 1:
            images = images.mul_(own).add_(before.mul_(1 - own))
        return images, labels.roll(1, 0), torch.full(labels.shape, own, device=images.device)


def _interval(place: float, length: int, own: float) -> tuple[int, int]:
    """First and last+1 pixel of a box about any pixel, which the border cuts off; its area is to be 1 - `own`."""
    centre, half = int(place * length), int(0.5 * math.sqrt(1 - own) * length)
    return max(centre - half, 0), min(centre + half, length)


class Augmenter:
    """What is drawn for each of the `n` positions of an epoch, and its application to batches of images of `size`.

    Each kind of augmentation has a stream of its own, (`stream`, kind, seed, epoch), drawn for the whole epoch on the
    CPU. So a batch depends on its positions alone, not on the batches before it or on the device, and one kind does
    not disturb the draws of another. `size` is (height, width).
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
        self.augment = augment
        draws = generator(stream, seed, epoch)
        flips = torch.randint(2, (n,), generator=draws)
        corners = torch.randint(2 * augment.pad + 1, (2, n), generator=draws)
        self._flips, self._corners = to_device(flips, device), to_device(corners, device)
        # (n,) on the CPU: which view of its image a position shows, where there are finitely many
        self.views = None if augment.views is None else number(augment, flips, corners)

        def of(kind: str) -> torch.Generator:
            return generator(stream, kind, seed, epoch)

        self._policy = None if augment.policy == "none" else Policy(augment, size, n, of("policy"), device)
        boxes = [cutout_boxes(augment.cutout, size, n, of("cutout"))] if augment.cutout else []
        boxes += [erasing_boxes(augment.erase, size, n, of("erase"))] if augment.erase else []
        self._boxes = [to_device(some, device) for some in boxes]
        self._mixing = Mixing(augment, size, n, of("mix")) if augment.mixes else None

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Images uint8 (B, C, H, W) at the positions `part` (B of them): cropped, mirrored, changed by the policy.

        Every image for itself: in batches of another size it comes out the same.
        """
        images = shifted(images, self.augment, self._flips[part], self._corners[:, part])
        return self._policy.apply(images, part) if self._policy else images

    def finish(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is done to normalised images float32 (B, C, H, W) of a batch, in place: erasing, then mixing.

        Gives the images; labels (B,) of the images mixed in, and weight (B,) of the own label, or None twice.
        """
        for boxes in self._boxes:
            images = blank(images, boxes[part])
        return self._mixing.apply(images, labels, part) if self._mixing else (images, None, None)

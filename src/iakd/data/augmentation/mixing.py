"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): each image of a batch mixed with the one before it.

One choice and one share for the whole batch, as timm and torchvision have it; the order of an epoch is random, so
the image before is any other. The draws of a batch are those of its first position.
"""

import math

import torch
from torch import Tensor

from iakd.params import Augment

Box = tuple[int, int, int, int]  # top, left, bottom, right


class Mixing:
    """Mixup, CutMix, or one of the two for each batch by lot, for the `n` positions of an epoch."""

    def __init__(self, augment: Augment, size: tuple[int, int], n: int, draws: torch.Generator) -> None:
        self.size = size
        self.kinds = [(name, kind) for name, kind in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if kind]
        self._uniform = torch.rand(n, 5, generator=draws, dtype=torch.float64)

    def draw(self, position: int) -> tuple[float, Box | None]:
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

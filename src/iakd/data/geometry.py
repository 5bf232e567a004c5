"""Crops: the box of an image that is scaled to the size of the data set."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from iakd.config import Augment
from iakd.seeding import derive


class CropBox(NamedTuple):
    """Edges in pixels, not necessarily whole numbers."""

    left: float
    top: float
    right: float
    bottom: float


CropFunction = Callable[[int, int], CropBox]  # from an image's height and width to the box that is shown

TRIES = 10  # to find a random box within the image
DRAWS = 2 * TRIES + 2  # random numbers for one random box


def centre_box(height: int, width: int, size: tuple[int, int], crop_pct: float = 1.0) -> CropBox:
    """Return the largest centred box with the aspect ratio of `size` (height, width), times `crop_pct` in each
    direction.

    With crop_pct 0.875 and 224 pixels: scale the shorter side to 256, then crop 224×224 from the centre.
    """
    scale = crop_pct * min(height / size[0], width / size[1])
    box_height, box_width = size[0] * scale, size[1] * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return CropBox(left, top, left + box_width, top + box_height)


def centre_crop(size: tuple[int, int], crop_pct: float) -> CropFunction:
    """Return `centre_box` as a function of an image's height and width."""
    return lambda height, width: centre_box(height, width, size, crop_pct)


def random_box(
    draws: Sequence[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> CropBox:
    """Return the box of a random resized crop (Szegedy et al., "Going Deeper with Convolutions", 2015, section 6).

    Its share of the image's area is uniform in `scale`, its width divided by its height log-uniform in `ratio`, and its
    position uniform. If ten attempts do not fit, it is the largest centred box with the nearest ratio. `draws` are
    DRAWS numbers, uniform in [0, 1). With the same draws, torchvision's RandomResizedCrop gives the same box.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws[-2] * (height - box_height + 1))
            left = int(draws[-1] * (width - box_width + 1))
            return CropBox(left, top, left + box_width, top + box_height)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_height, box_width = min(height, round(width / aspect)), min(width, round(height * aspect))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return CropBox(left, top, left + box_width, top + box_height)


class RandomCrops(NamedTuple):
    """The random crops of an epoch: a random stream, indexed by position, and the bounds of the crops."""

    stream: str
    seed: int
    epoch: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    @classmethod
    def of(cls, augment: Augment, stream: str, seed: int, epoch: int) -> "RandomCrops | None":
        """Return the crops of `augment`; None if it has none."""
        return cls(stream, seed, epoch, augment.scale, augment.ratio) if augment.crop == "resized" else None

    def at(self, position: int) -> CropFunction:
        """Return the crop at a position of the epoch."""
        raw = np.random.PCG64(derive(self.stream, "resized", self.seed, self.epoch, position)).random_raw(DRAWS)
        draws = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        return lambda height, width: random_box(draws, height, width, self.scale, self.ratio)

"""Which part of an image is shown: a box in its pixels, which is then scaled to the size of the data set."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from iakd.config import Augment
from iakd.seeding import derive


class Box(NamedTuple):
    """Edges in pixels, not necessarily whole ones."""

    left: float
    top: float
    right: float
    bottom: float


Crop = Callable[[int, int], Box]  # from an image's height and width to the part of it that is shown

TRIES = 10  # of a random box to lie within the image
DRAWS = 2 * TRIES + 2  # random numbers that one random box takes


def centre_box(height: int, width: int, size: tuple[int, int], crop_pct: float = 1.0) -> Box:
    """The largest box in the centre with the shape of `size` (height, width), `crop_pct` of it in each direction.

    With crop_pct 0.875 and 224 pixels that is: shorter side to 256, then 224×224 from the centre.
    """
    scale = crop_pct * min(height / size[0], width / size[1])
    tall, wide = size[0] * scale, size[1] * scale
    left, top = (width - wide) / 2, (height - tall) / 2
    return Box(left, top, left + wide, top + tall)


def centre_crop(size: tuple[int, int], crop_pct: float) -> Crop:
    """`centre_box` of images of any height and width."""
    return lambda height, width: centre_box(height, width, size, crop_pct)


def random_box(
    draws: Sequence[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The box of a random resized crop (Szegedy et al., "Going Deeper with Convolutions", 2015, section 6).

    Its area is a share of the image's, uniform in `scale`; its width over height log-uniform in `ratio`; its place
    uniform. Where that does not fit in ten attempts, the largest box in the centre with the nearest ratio.
    `draws`: DRAWS numbers, uniform in [0, 1). The same as torchvision's RandomResizedCrop with these draws.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        shape = math.exp(low + (high - low) * draws[2 * attempt + 1])
        wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(draws[-2] * (height - tall + 1))
            left = int(draws[-1] * (width - wide + 1))
            return Box(left, top, left + wide, top + tall)
    shape = min(max(width / height, ratio[0]), ratio[1])
    tall, wide = min(height, round(width / shape)), min(width, round(height * shape))
    left, top = (width - wide) // 2, (height - tall) // 2
    return Box(left, top, left + wide, top + tall)


class RandomCrops(NamedTuple):
    """A stream of draws, one for each position of an epoch, and the bounds of the crops."""

    stream: str
    seed: int
    epoch: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    @classmethod
    def of(cls, augment: Augment, stream: str, seed: int, epoch: int) -> "RandomCrops | None":
        """None where `augment` has no such crops."""
        return cls(stream, seed, epoch, augment.scale, augment.ratio) if augment.crop == "resized" else None

    def at(self, position: int) -> Crop:
        """The crop at a position of the epoch."""
        raw = np.random.PCG64(derive(self.stream, "resized", self.seed, self.epoch, position)).random_raw(DRAWS)
        draws = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        return lambda height, width: random_box(draws, height, width, self.scale, self.ratio)

"""The random resized crops of an epoch."""

from typing import NamedTuple

import numpy as np

from iakd.data.geometry import DRAWS, Crop, random_box
from iakd.data.streams import derive
from iakd.params import Augment


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

"""The images of one part of a data set, wherever they are kept, in batches on a device."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from iakd.data.batches import Batch, Resident
from iakd.data.choice import Choice
from iakd.data.splits import Indices
from iakd.data.store import Store
from iakd.params import Augment


class ImageSet(Protocol):
    """What trainings and evaluations need of a set; `Resident` describes each."""

    labels: Tensor  # int64 (N,), on the device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch."""
        ...

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        augment: Augment,
        start: int = 0,
        channels_last: bool = False,
        second: Augment | None = None,
        choice: Choice | None = None,
    ) -> Iterator[Batch]:
        """Training batches `start`, `start` + 1, … of an epoch: shuffled, augmented, normalised."""
        ...

    def plain(self, batch_size: int, channels_last: bool = False) -> Iterator[Batch]:
        """All images in their order, normalised; the last batch may be short."""
        ...


def image_set(store: Store, split: str, device: torch.device | str, chosen: Indices | None = None) -> ImageSet:
    """The images of a split, or those at the positions `chosen` of it."""
    images, labels = store.images(split), store.labels(split)
    if chosen is not None:
        images, labels = images[chosen], labels[chosen]
    return Resident(images, labels, store.mean, store.std, device)

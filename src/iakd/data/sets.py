"""The images of one part of a data set, wherever they are kept, in batches on a device."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from iakd.data.batches import Batch, Resident
from iakd.data.choice import Choice
from iakd.data.splits import Indices
from iakd.data.store import Store
from iakd.data.streamed import Files, Streamed
from iakd.params import Augment
from iakd.processes import cores


class ImageSet(Protocol):
    """What trainings and evaluations need of a set; `Batches` describes each."""

    labels: Tensor  # int64 (N,), on the device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    def __len__(self) -> int: ...

    def close(self) -> None:
        """End what runs beside this process for these batches."""
        ...

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


def image_set(
    store: Store,
    split: str,
    device: torch.device | str,
    chosen: Indices | None = None,
    workers: int | None = None,
) -> ImageSet:
    """The images of a split, or those at the positions `chosen` of it; `workers` as in the settings `compute`."""
    which = slice(None) if chosen is None else chosen
    labels = store.labels(split)[which]
    if store.storage == "array":
        return Resident(store.images(split)[which], labels, store.mean, store.std, device)
    again = f"put it back, or delete {store.folder} and run `iakd prepare`"
    files = Files(store.root, store.files(split)[which], store.image_shape, store.crop_pct, again)
    return Streamed(files, labels, store.mean, store.std, device, cores() if workers is None else workers)

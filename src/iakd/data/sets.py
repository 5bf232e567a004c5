"""The images of one part of a data set, wherever they are kept, in batches on a device."""

import torch

from iakd.data.batches import Batches, Resident
from iakd.data.splits import Indices
from iakd.data.store import Store
from iakd.data.streamed import Files, Streamed
from iakd.processes import cores


def image_set(
    store: Store,
    split: str,
    device: torch.device | str,
    chosen: Indices | None = None,
    workers: int | None = None,
) -> Batches:
    """The images of a split, or those at the positions `chosen` of it; `workers` as in the settings `compute`."""
    which = slice(None) if chosen is None else chosen
    labels = store.labels(split)[which]
    if store.storage == "array":
        return Resident(store.images(split)[which], labels, store.mean, store.std, device)
    again = f"put it back, or delete {store.folder} and run `iakd prepare`"
    files = Files(store.root, store.files(split)[which], store.image_shape, store.crop_pct, again)
    return Streamed(files, labels, store.mean, store.std, device, cores() if workers is None else workers)

"""Which image falls in which part: random subsets that keep the proportions of the classes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iakd.data.raw import Images, Labels, Raw
from iakd.data.streams import derive
from iakd.errors import UserError
from iakd.params import Dataset

Indices = NDArray[np.int64]


class Part(NamedTuple):
    """A part of a data set: arrays of the source, and which of their images belong to it, ascending."""

    images: Images
    labels: Labels
    indices: Indices
    own: bool = False  # whether it is the source's own test set

    def per_class(self, classes: int) -> list[int]:
        """Number of images of each class."""
        counts: list[int] = np.bincount(self.labels[self.indices], minlength=classes).tolist()
        return counts


def stratified(labels: Labels, n: int, seed: int, setting: str = "split") -> Indices:
    """Positions of `n` images drawn at random by class, ascending, int64 (n,).

    Each class gives its share n·N_c/N, rounded down or up so that the sum is n (largest remainder, ties by
    lot). The draws use only numpy's raw generator, whose values no numpy release may change. Raises
    UserError, naming `setting`, where there are fewer than `n` images.
    """
    total = len(labels)
    if not 0 <= n <= total:
        raise UserError(f"{setting}: {n} images asked for where there are {total}; ask for fewer")
    counts = np.bincount(labels)
    lots = np.random.PCG64(seed).random_raw(total + len(counts))
    shares, remainders = np.divmod(counts * n, max(total, 1))
    by_remainder = np.lexsort((lots[total:], -remainders))
    shares[by_remainder[: n - shares.sum()]] += 1

    by_class = np.lexsort((lots[:total], labels))  # at random within each class
    rank = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < np.repeat(shares, counts)]).astype(np.int64)


def split(raw: Raw, settings: Dataset) -> dict[str, Part]:
    """The parts train, val and test of a data set; the source's own test set whole, where it has one.

    Raises UserError where that leaves no image, or none of some class, for training.
    """
    images, labels, seed = raw.train_images, raw.train_labels, settings.split_seed
    drawn = 0 if raw.test_images is not None else settings.test
    wish = "dataset.val + dataset.test" if drawn else "dataset.val"
    if settings.val + drawn >= len(labels):
        raise UserError(
            f"{wish}: {settings.val + drawn} of {len(labels)} images leave none for training; ask for fewer"
        )
    rest = np.arange(len(labels))
    if raw.test_images is None or raw.test_labels is None:
        test = Part(images, labels, stratified(labels, drawn, derive("split", "test", seed)))
        rest = np.setdiff1d(rest, test.indices, assume_unique=True)
    else:
        test = Part(raw.test_images, raw.test_labels, np.arange(len(raw.test_labels)), own=True)
    val = rest[stratified(labels[rest], settings.val, derive("split", "val", seed))]
    train = Part(images, labels, np.setdiff1d(rest, val, assume_unique=True))
    per_class = train.per_class(len(raw.classes))
    if not all(per_class):
        position = per_class.index(0)
        there = int(np.sum(labels == position))
        raise UserError(
            f"class {raw.classes[position]!r}: none of its {there} images is left for training; "
            f"add images, leave the class out, or ask for less in {wish}"
        )
    return {"train": train, "val": Part(images, labels, val), "test": test}

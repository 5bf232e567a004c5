"""Which image falls in which part: random subsets that keep the proportions of the classes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iakd.config import Dataset
from iakd.data.source_data import Labels, SourceData, SourceImages
from iakd.errors import UserError
from iakd.seeding import derive

Indices = NDArray[np.int64]


class Split(NamedTuple):
    """A part of a data set: images and labels of the source, and which of their images belong to it, ascending."""

    images: SourceImages
    labels: Labels
    indices: Indices
    origin: str = "train"  # the source's own part that they come from

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
    lots = np.random.PCG64(seed).random_raw(total + len(counts))  # for images, then for ties
    shares, remainders = np.divmod(counts * n, max(total, 1))
    by_remainder = np.lexsort((lots[total:], -remainders))
    shares[by_remainder[: n - shares.sum()]] += 1
    return _drawn(labels, shares, lots[:total])


def share_of_each(labels: Labels, share: float, seed: int) -> Indices:
    """Positions of `share` of each class, rounded but at least one image, drawn as in `stratified`.

    The images of a smaller share are among those of a larger one, of the same seed; likewise with `of_each`.
    """
    counts = np.bincount(labels)
    shares = np.maximum(np.rint(share * counts).astype(np.int64), np.minimum(counts, 1))
    return _drawn(labels, shares, np.random.PCG64(seed).random_raw(len(labels)))


def of_each(labels: Labels, n: int, seed: int, classes: list[str], setting: str) -> Indices:
    """Positions of `n` images of each class. Raises UserError, naming `setting`, where a class has fewer."""
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < n:
        raise UserError(
            f"{setting}: {n} images asked for of each class where {classes[least]!r} has {counts[least]} for training; "
            "ask for fewer"
        )
    return _drawn(labels, np.full(len(classes), n), np.random.PCG64(seed).random_raw(len(labels)))


def _drawn(labels: Labels, shares: Indices, lots: NDArray[np.uint64]) -> Indices:
    """Positions of the `shares` images (classes,) of each class with the lowest `lots`, ascending."""
    counts = np.bincount(labels, minlength=len(shares))
    by_class = np.lexsort((lots, labels))  # at random within each class
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < np.repeat(shares, counts)]).astype(np.int64)


def amount(wanted: int | float, total: int) -> int:
    """A number of images from a setting that gives a number, or a share of `total` as a float; at least 1."""
    return max(1, round(wanted * total)) if isinstance(wanted, float) else wanted


def split(raw: SourceData, settings: Dataset) -> dict[str, Split]:
    """The parts train, val and test of a data set; the source's own val and test sets whole, where it has them.

    Shares are of all the source's training images. With few-shot settings, some of what is left after val and test
    is training. Raises UserError where that leaves no image, or none of
    some class, for training.
    """
    images, labels, seed = raw.train_images, raw.train_labels, settings.split_seed
    drawn = {
        name: amount(wanted, len(labels))
        for name, wanted, own in (
            ("val", settings.val, raw.val_images),
            ("test", settings.test, raw.test_images),
        )
        if own is None
    }
    wish = " + ".join(f"dataset.{name}" for name in drawn)
    if sum(drawn.values()) >= len(labels):
        raise UserError(f"{wish}: {sum(drawn.values())} of {len(labels)} images leave none for training; ask for fewer")
    rest = np.arange(len(labels))
    parts: dict[str, Split] = {}
    for name, own_images, own_labels in (
        ("test", raw.test_images, raw.test_labels),
        ("val", raw.val_images, raw.val_labels),
    ):
        if own_images is None or own_labels is None:
            taken = rest[stratified(labels[rest], drawn[name], derive("split", name, seed))]
            rest = np.setdiff1d(rest, taken, assume_unique=True)
            parts[name] = Split(images, labels, taken)
        else:
            parts[name] = Split(own_images, own_labels, np.arange(len(own_labels)), origin=name)
    train = Split(images, labels, rest)
    per_class = train.per_class(len(raw.classes))
    if not all(per_class):
        position = per_class.index(0)
        there = int(np.sum(labels == position))
        hint = f"add images, leave the class out, or ask for less in {wish}" if wish else "add images, or leave it out"
        raise UserError(f"class {raw.classes[position]!r}: none of its {there} images is left for training; {hint}")
    few = _few(labels[rest], settings, raw.classes)
    return {"train": train._replace(indices=rest[few]), "val": parts["val"], "test": parts["test"]}


def _few(labels: Labels, settings: Dataset, classes: list[str]) -> Indices | slice:
    """Which of the images with these labels are kept for training."""
    seed = derive("split", "train", settings.split_seed)
    if settings.train_fraction is not None:
        return share_of_each(labels, settings.train_fraction, seed)
    if settings.images_per_class is not None:
        return of_each(labels, settings.images_per_class, seed, classes, "dataset.images_per_class")
    return slice(None)

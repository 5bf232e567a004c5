"""The division into training, validation and test images: random subsets that keep the proportions of the classes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iakd.config import Dataset
from iakd.data.source_data import Labels, SourceData, SourceImages
from iakd.errors import UserError
from iakd.seeding import derive

Indices = NDArray[np.int64]


class Split(NamedTuple):
    """A split: images and labels of the source, and the ascending positions of those that belong to the split."""

    images: SourceImages
    labels: Labels
    indices: Indices
    origin: str = "train"  # the source's given part that they come from

    def per_class(self, classes: int) -> list[int]:
        """Return the number of images of each class."""
        counts: list[int] = np.bincount(self.labels[self.indices], minlength=classes).tolist()
        return counts


def stratified(labels: Labels, n: int, seed: int, setting: str = "split") -> Indices:
    """Return the positions of `n` images drawn at random in proportion to the classes, ascending, int64 (n,).

    Each class gets n·N_c/N images, rounded down or up so that the sum is n (largest remainder; ties are broken at
    random). Only numpy's raw bit generator is used, whose output no numpy release may change. Raises UserError, naming
    `setting`, if there are fewer than `n` images.
    """
    n_images = len(labels)
    if not 0 <= n <= n_images:
        raise UserError(f"{setting}: {n} images asked for where there are {n_images}; ask for fewer")
    counts = np.bincount(labels)
    draws = np.random.PCG64(seed).random_raw(n_images + len(counts))  # for images, then for ties
    wanted, remainders = np.divmod(counts * n, max(n_images, 1))
    by_remainder = np.lexsort((draws[n_images:], -remainders))
    wanted[by_remainder[: n - wanted.sum()]] += 1
    return _lowest_draws(labels, wanted, draws[:n_images])


def fraction_per_class(labels: Labels, fraction: float, seed: int) -> Indices:
    """Return the positions of a fraction of each class, rounded but at least one image, drawn as in `stratified`.

    With the same seed, a smaller fraction is a subset of a larger one; the same holds between this and
    `count_per_class`.
    """
    counts = np.bincount(labels)
    wanted = np.maximum(np.rint(fraction * counts).astype(np.int64), np.minimum(counts, 1))
    return _lowest_draws(labels, wanted, np.random.PCG64(seed).random_raw(len(labels)))


def count_per_class(labels: Labels, n: int, seed: int, classes: list[str], setting: str) -> Indices:
    """Return the positions of `n` images of each class. Raises UserError, naming `setting`, if a class has fewer."""
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < n:
        raise UserError(
            f"{setting}: {n} images of each class asked for, but {classes[least]!r} has {counts[least]} for training; "
            "ask for fewer"
        )
    return _lowest_draws(labels, np.full(len(classes), n), np.random.PCG64(seed).random_raw(len(labels)))


def _lowest_draws(labels: Labels, wanted: Indices, draws: NDArray[np.uint64]) -> Indices:
    """Return the ascending positions of the `wanted` (classes,) images of each class with the lowest `draws`."""
    counts = np.bincount(labels, minlength=len(wanted))
    by_class = np.lexsort((draws, labels))  # at random within each class
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < np.repeat(wanted, counts)]).astype(np.int64)


def count_of(value: int | float, n_images: int) -> int:
    """Return the number of images that a setting means: the number itself, or a fraction of `n_images` if a float; at
    least 1.
    """
    return max(1, round(value * n_images)) if isinstance(value, float) else value


def split_source(source: SourceData, settings: Dataset) -> dict[str, Split]:
    """Return the splits train, val and test of a data set. The source's own val and test sets are used whole.

    Fractions are of all training images of the source. Settings such as `train_fraction` keep a subset of what remains
    after val and test. Raises UserError if no image, or none of some class, remains for training.
    """
    images, labels, seed = source.train_images, source.train_labels, settings.split_seed
    sizes = {
        name: count_of(value, len(labels))
        for name, value, given in (
            ("val", settings.val, source.val_images),
            ("test", settings.test, source.test_images),
        )
        if given is None
    }
    names = " + ".join(f"dataset.{name}" for name in sizes)
    if sum(sizes.values()) >= len(labels):
        raise UserError(
            f"{names}: {sum(sizes.values())} of {len(labels)} images leave none for training; ask for fewer"
        )
    remaining = np.arange(len(labels))
    splits: dict[str, Split] = {}
    for name, given_images, given_labels in (
        ("test", source.test_images, source.test_labels),
        ("val", source.val_images, source.val_labels),
    ):
        if given_images is None or given_labels is None:
            chosen = remaining[stratified(labels[remaining], sizes[name], derive("split", name, seed))]
            remaining = np.setdiff1d(remaining, chosen, assume_unique=True)
            splits[name] = Split(images, labels, chosen)
        else:
            splits[name] = Split(given_images, given_labels, np.arange(len(given_labels)), origin=name)
    train = Split(images, labels, remaining)
    per_class = train.per_class(len(source.classes))
    if not all(per_class):
        position = per_class.index(0)
        available = int(np.sum(labels == position))
        hint = (
            f"add images, leave the class out, or ask for less in {names}" if names else "add images, or leave it out"
        )
        raise UserError(
            f"class {source.classes[position]!r}: none of its {available} images is left for training; {hint}"
        )
    subset = _training_subset(labels[remaining], settings, source.classes)
    return {"train": train._replace(indices=remaining[subset]), "val": splits["val"], "test": splits["test"]}


def _training_subset(labels: Labels, settings: Dataset, classes: list[str]) -> Indices | slice:
    """Return which of the images with these labels are used for training."""
    seed = derive("split", "train", settings.split_seed)
    if settings.train_fraction is not None:
        return fraction_per_class(labels, settings.train_fraction, seed)
    if settings.images_per_class is not None:
        return count_per_class(labels, settings.images_per_class, seed, classes, "dataset.images_per_class")
    return slice(None)

"""The division into training, validation and test images: random subsets that keep the proportions of the classes, and
groups of images together.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iakd.config import Dataset
from iakd.data.source_data import Groups, Labels, SourceData, SourceImages
from iakd.errors import UserError
from iakd.files import printable
from iakd.seeding import derive

Indices = NDArray[np.int64]


class Split(NamedTuple):
    """A split: images and labels of the source, and the ascending positions of those that belong to the split."""

    images: SourceImages
    labels: Labels
    indices: Indices
    origin: str = "train"  # the source's given part that they come from
    groups: Groups | None = None  # of all images of the source, as `labels`

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


def grouped(labels: Labels, groups: Groups, shares: list[float], seed: int, spare: bool = False) -> Indices:
    """Return the part, 0 to len(shares) - 1, that each image belongs to, int64 (n,); a group's images are in one part.

    `shares` add up to 1; each part gets about that share of each class. The largest groups come first, equally large
    ones in random order, and each goes where the chi-square distance from the shares stays smallest. With `spare`, the
    last part keeps a group of each class.
    """
    names, group = np.unique(groups, return_inverse=True)
    classes = int(labels.max()) + 1
    counts = np.bincount(group * classes + labels, minlength=len(names) * classes).reshape(len(names), classes)
    per_class = np.maximum(counts.sum(axis=0), 1)
    wanted = np.outer(shares, per_class)
    weight = 1 / np.maximum(wanted * per_class, 1e-9)
    placed = np.zeros((len(shares), classes))
    with_class = (counts > 0).sum(axis=0)  # groups that are not in a part before the last one
    parts = np.full(len(names), len(shares) - 1)
    for position in np.lexsort((np.random.PCG64(seed).random_raw(len(names)), -counts.sum(axis=1))):
        of_group = counts[position]
        change = (weight * of_group * (2 * (placed - wanted) + of_group)).sum(axis=1)
        if spare and (with_class[of_group > 0] < 2).any():
            change[:-1] = np.inf
        parts[position] = chosen = int(change.argmin())
        placed[chosen] += of_group
        if chosen < len(shares) - 1:
            with_class -= of_group > 0
    return parts[group].astype(np.int64)


def dealt(labels: Labels, n: int, seed: int) -> Indices:
    """Return the part, 0 to n - 1, of each image, int64: each class is shuffled and dealt out like cards."""
    order = np.lexsort((np.random.PCG64(seed).random_raw(len(labels)), labels))
    parts = np.empty(len(labels), np.int64)
    parts[order] = np.arange(len(labels)) % n
    return parts


def split_source(source: SourceData, settings: Dataset) -> dict[str, Split]:
    """Return the splits train, val and test of a data set. The source's own val and test sets are used whole.

    Fractions are of all training images of the source. Settings such as `train_fraction` keep a subset of what remains
    after val and test. Raises UserError if no image, or none of some class, remains for training, if a given split is
    drawn again as a fold, and if a group is in two splits, as given.
    """
    images, labels, seed = source.train_images, source.train_labels, settings.split_seed
    sizes = {
        name: count_of(value, len(labels))
        for name, value, given in (
            ("val", settings.val, source.val_images),
            ("test", settings.test, source.test_images),
        )
        if given is None and not (name == "test" and settings.fold is not None)
    }
    names = " + ".join(f"dataset.{name}" for name in sizes)
    if sum(sizes.values()) >= len(labels):
        raise UserError(
            f"{names}: {sum(sizes.values())} of {len(labels)} images leave none for training; ask for fewer"
        )
    remaining = np.arange(len(labels))
    folds = _folds(source, settings)
    groups = source.groups or {}
    splits: dict[str, Split] = {}
    for name, given_images, given_labels in (
        ("test", source.test_images, source.test_labels),
        ("val", source.val_images, source.val_labels),
    ):
        if given_images is None or given_labels is None:
            if name == "test" and folds is not None:
                drawn = np.flatnonzero(folds == settings.fold)
            elif groups:
                drawn = _whole_groups(labels[remaining], groups["train"][remaining], sizes[name], name, seed)
            else:
                drawn = stratified(labels[remaining], sizes[name], derive("split", name, seed))
            chosen = remaining[drawn]
            remaining = np.setdiff1d(remaining, chosen, assume_unique=True)
            splits[name] = Split(images, labels, chosen, groups=groups.get("train"))
        else:
            whole = np.arange(len(given_labels))
            splits[name] = Split(given_images, given_labels, whole, origin=name, groups=groups.get(name))
    train = Split(images, labels, remaining, groups=groups.get("train"))
    _check_groups({"train": train, **splits})
    per_class = train.per_class(len(source.classes))
    if not all(per_class):
        position = per_class.index(0)
        available = int(np.sum(labels == position))
        hint = (
            f"add images, leave the class out, or ask for less in {names}" if names else "add images, or leave it out"
        )
        if settings.group_by:
            hint += "; its images are in too few groups of dataset.group_by"
        raise UserError(
            f"class {source.classes[position]!r}: none of its {available} images is left for training; {hint}"
        )
    subset = _training_subset(labels[remaining], settings, source.classes)
    return {"train": train._replace(indices=remaining[subset]), "val": splits["val"], "test": splits["test"]}


def _folds(source: SourceData, settings: Dataset) -> Indices | None:
    """Return the fold of each training image, int64 (n,); None without folds. Raises UserError for an unusable fold."""
    if settings.fold is None:
        return None
    if source.test_images is not None:
        raise UserError("dataset.fold: the data have test images of their own: leave out fold and folds, or these")
    if settings.folds is None:
        assert source.folds is not None  # of the list
        known = np.unique(source.folds).tolist()
        if settings.fold not in known:
            raise UserError(f"dataset.fold: there is no fold {settings.fold} in the list, which has {known}")
        return source.folds
    seed = derive("split", "folds", settings.split_seed)
    if source.groups is None:
        return dealt(source.train_labels, settings.folds, seed)
    return grouped(source.train_labels, source.groups["train"], [1 / settings.folds] * settings.folds, seed)


def _whole_groups(labels: Labels, groups: Groups, n: int, name: str, seed: int) -> Indices:
    """Return the positions of about `n` images, whole groups of them. Raises UserError if no group can be spared."""
    share = n / len(labels)
    chosen = np.zeros(0, np.int64)
    if share < 1:
        parts = grouped(labels, groups, [share, 1 - share], derive("split", name, seed), spare=True)
        chosen = np.flatnonzero(parts == 0)
    if not len(chosen):  # rather than none, the smallest group
        chosen = _smallest_spare(labels, groups)
    if not len(chosen):
        raise UserError(
            f"dataset.{name}: none of the {len(np.unique(groups))} groups of dataset.group_by can be spared for it: "
            "they are too large, or the only ones of their classes; make smaller groups, or ask for more images"
        )
    return chosen


def _smallest_spare(labels: Labels, groups: Groups) -> Indices:
    """Return the positions of the smallest group without which all its classes still have images; none if all are
    needed.
    """
    counts = np.bincount(labels)
    for name in sorted(set(groups.tolist()), key=lambda name: (int((groups == name).sum()), name)):
        of_group = np.flatnonzero(groups == name)
        own = np.bincount(labels[of_group], minlength=len(counts))
        if (counts > own)[own > 0].all():
            return of_group
    return np.zeros(0, np.int64)


def _check_groups(splits: dict[str, Split]) -> None:
    """Raise UserError if a group has images in two splits; those that are drawn here have none in common."""
    named = {
        name: set(split.groups[split.indices].tolist()) for name, split in splits.items() if split.groups is not None
    }
    for first, second in combinations(named, 2):
        shared = sorted(named[first] & named[second])
        if shared:
            raise UserError(
                f"dataset.group_by: {len(shared)} groups have images in both {first} and {second}, as the data are "
                f"given, such as {printable(shared[0])}: move these images, or leave out group_by"
            )


def _training_subset(labels: Labels, settings: Dataset, classes: list[str]) -> Indices | slice:
    """Return which of the images with these labels are used for training."""
    seed = derive("split", "train", settings.split_seed)
    if settings.train_fraction is not None:
        return fraction_per_class(labels, settings.train_fraction, seed)
    if settings.images_per_class is not None:
        return count_per_class(labels, settings.images_per_class, seed, classes, "dataset.images_per_class")
    return slice(None)

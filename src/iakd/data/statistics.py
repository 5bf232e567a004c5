"""What the manifest says about the images: pixel statistics, and problems that a user should know about."""

import hashlib
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd.data.perceptual_hash import Hashes, comparable, nearest, perceptual_hashes
from iakd.data.source_data import ImageFiles, SourceImages
from iakd.data.splits import Indices, Split

CHUNK = 1024  # images processed at a time, so that a large data set needs little memory
VALUES = 1 << 22  # of images that are turned to floating point at a time
EXAMPLES = 20  # of near-duplicates, per two splits
DOMINANT, DOMINANT_OF_TWO = 0.5, 0.7  # share of the training images above which a class dominates
MIN_STD = 1 / 255  # one grey level, so that a constant channel is normalised to 0 and not to infinity


def in_chunks(array: NDArray[Any], indices: Indices, size: int = CHUNK) -> Iterator[NDArray[Any]]:
    """Yield `array[indices]`, `size` images at a time."""
    for start in range(0, len(indices), size):
        yield array[indices[start : start + size]]


def moments(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return, for each channel of images (N, C, H, W), the sum of all values and of their squares: (C, 2), exact."""
    levels = np.arange(256)
    counts = np.array([np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])])
    return np.stack((counts @ levels, counts @ levels**2), axis=1).astype(np.int64)


def mean_std(images: SourceImages, indices: Indices) -> tuple[list[float], list[float]]:
    """Return the mean and the (population) standard deviation of each channel over the images at `indices`, in 0–1
    units.

    Exact up to the last division, because the sums are integers. A standard deviation below one grey level becomes
    1/255.
    """
    _, channels, height, width = images.shape
    n = len(indices) * height * width
    if isinstance(images, ImageFiles):
        sums = images.moments[indices].sum(axis=0)
    else:
        sums = sum((moments(chunk) for chunk in in_chunks(images, indices)), np.zeros((channels, 2), np.int64))
    means, stds = [], []
    for first, second in sums.tolist():
        means.append(first / (n * 255))
        stds.append(max((n * second - first * first) ** 0.5 / (n * 255), MIN_STD))
    return means, stds


def constant_channels(stds: list[float]) -> list[str]:
    """Return a sentence for each channel that hardly varies."""
    return [
        f"channel {channel} is (almost) constant over the training images; its std is taken as 1/255"
        for channel, std in enumerate(stds)
        if std <= MIN_STD
    ]


def missing_classes(counts: dict[str, list[int]], classes: list[str]) -> list[str]:
    """Return a sentence for each split without images of some classes. `counts`: images per class of each split."""
    found = []
    for split, per_class in counts.items():
        missing = [name for name, count in zip(classes, per_class, strict=True) if not count]
        if missing:
            names = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            found.append(f"{len(missing)} of {len(classes)} classes have no image in {split}: {names}")
    return found


def similar_names(classes: list[str]) -> list[str]:
    """Return a sentence for each group of classes whose names differ only in case, spaces and the like."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(re.sub(r"\s+|(?<=\w)[-_](?=\w)", "", name.casefold()), []).append(name)
    return [f"classes of nearly the same name: {', '.join(map(repr, group))}" for group in groups.values() if group[1:]]


def content_hashes(splits: dict[str, Split]) -> dict[str, list[bytes]]:
    """Return a hash of each image of each split; of files, of their content."""
    return {name: _hashes(split) for name, split in splits.items()}


def _hashes(split: Split) -> list[bytes]:
    if isinstance(split.images, ImageFiles):
        return [row.tobytes() for row in split.images.index["hash"][split.indices]]
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for chunk in in_chunks(split.images, split.indices)
        for image in chunk
    ]


def near_duplicates(splits: dict[str, Split], exact: dict[str, list[bytes]]) -> list[dict[str, Any]] | None:
    """Return, for each two splits, how many images of one look like an image of the other.

    Images whose `exact` hash is in both are not counted. `examples` are the first ones, with their positions in the two
    splits. None where the images are too small to tell.
    """
    if not comparable(*next(iter(splits.values())).images.shape[2:]):
        return None
    perceptual = {name: _perceptual_hashes(split) for name, split in splits.items()}
    found = []
    for earlier, name in combinations(splits, 2):
        copies = set(exact[earlier])
        nearest_one = nearest(perceptual[name], perceptual[earlier])
        pairs = [
            [position, other]
            for position, other in enumerate(nearest_one.tolist())
            if other >= 0 and exact[name][position] not in copies
        ]
        found.append({"split": name, "of": earlier, "n": len(pairs), "examples": pairs[:EXAMPLES]})
    return found


def _perceptual_hashes(split: Split) -> Hashes:
    if isinstance(split.images, ImageFiles):
        return split.images.hashes[split.indices]
    _, channels, height, width = split.images.shape
    size = max(1, VALUES // (channels * height * width))
    return np.concatenate([perceptual_hashes(chunk) for chunk in in_chunks(split.images, split.indices, size)])


def alike(found: list[dict[str, Any]] | None, splits: dict[str, Split]) -> list[str]:
    """Return a sentence for each two splits with near-duplicates, as `near_duplicates` found them."""
    return [
        f"{one['n']} of {len(splits[one['split']].indices)} {one['split']} images look like {one['of']} images "
        "(perceptual hash)"
        for one in found or []
        if one["n"]
    ]


def dominant_class(per_class: list[int], classes: list[str]) -> list[str]:
    """Return a sentence if one class dominates the training images: accuracy then says little about the others."""
    most, least = max(per_class), min(per_class)
    share = most / sum(per_class)
    if share <= (DOMINANT_OF_TWO if len(classes) == 2 else DOMINANT):
        return []
    return [
        f"class {classes[per_class.index(most)]!r} has {100 * share:.0f} % of the training images (the smallest class "
        f"has {least}): judge by balanced accuracy; class_weights and sampler of a recipe give the others more weight"
    ]


def groups_of(splits: dict[str, Split]) -> dict[str, int] | None:
    """Return the number of groups in each split; None without groups."""
    named = {name: split.groups[split.indices] for name, split in splits.items() if split.groups is not None}
    return {name: len(np.unique(groups)) for name, groups in named.items()} or None


def duplicates(splits: dict[str, Split], exact: dict[str, list[bytes]]) -> list[str]:
    """Return sentences on images (of files: contents) that are in two splits, or that occur with different labels."""
    seen: dict[str, set[bytes]] = {}
    label_of: dict[bytes, int] = {}
    conflicting: set[bytes] = set()
    found = []
    for name, split in splits.items():
        hashes = exact[name]
        for image_hash, label in zip(hashes, split.labels[split.indices].tolist(), strict=True):
            if label_of.setdefault(image_hash, label) != label:
                conflicting.add(image_hash)
        for earlier, known in seen.items():
            copies = sum(image_hash in known for image_hash in hashes)
            if copies:
                found.append(f"{copies} of {len(hashes)} {name} images are exact copies of {earlier} images")
        seen[name] = set(hashes)
    if conflicting:
        found.append(f"images that occur more than once, with different labels: {len(conflicting)}")
    return found

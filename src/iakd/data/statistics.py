"""What the manifest says about the images: pixel statistics, and problems that a user should know about."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd.data.source_data import ImageFiles, SourceImages
from iakd.data.splits import Indices, Split

CHUNK = 1024  # images processed at a time, so that a large data set needs little memory
MIN_STD = 1 / 255  # one grey level, so that a constant channel is normalised to 0 and not to infinity


def in_chunks(array: NDArray[Any], indices: Indices) -> Iterator[NDArray[Any]]:
    """Yield `array[indices]`, some images at a time."""
    for start in range(0, len(indices), CHUNK):
        yield array[indices[start : start + CHUNK]]


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


def _hashes(split: Split) -> list[bytes]:
    """Return a hash of each image; of files, of their content."""
    if isinstance(split.images, ImageFiles):
        return [row.tobytes() for row in split.images.index["hash"][split.indices]]
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for chunk in in_chunks(split.images, split.indices)
        for image in chunk
    ]


def duplicates(splits: dict[str, Split]) -> list[str]:
    """Return sentences on images (of files: contents) that are in two splits, or that occur with different labels."""
    seen: dict[str, set[bytes]] = {}
    label_of: dict[bytes, int] = {}
    conflicting: set[bytes] = set()
    found = []
    for name, split in splits.items():
        hashes = _hashes(split)
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

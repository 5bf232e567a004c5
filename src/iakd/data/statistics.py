"""What the manifest says about the images: statistics of the pixels, and problems a user should know of."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd.data.source_data import ImageFiles, SourceImages
from iakd.data.splits import Indices, Split

PIECE = 1024  # images handled at a time, so that a large data set needs little memory
FLOOR = 1 / 255  # least std: one grey level, so that a constant channel becomes 0 and not infinite


def pieces(array: NDArray[Any], indices: Indices) -> Iterator[NDArray[Any]]:
    """`array[indices]`, some images at a time."""
    for start in range(0, len(indices), PIECE):
        yield array[indices[start : start + PIECE]]


def moments(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each channel of images (N, C, H, W) the sum of all values, and of their squares: (C, 2), exact."""
    levels = np.arange(256)
    counts = np.array([np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])])
    return np.stack((counts @ levels, counts @ levels**2), axis=1).astype(np.int64)


def mean_std(images: SourceImages, indices: Indices) -> tuple[list[float], list[float]]:
    """Mean and (population) standard deviation of each channel over the images at `indices`, in 0–1 units.

    Exact up to the last division, because sums are whole numbers. A std below one grey level is given as 1/255.
    """
    _, channels, height, width = images.shape
    n = len(indices) * height * width
    if isinstance(images, ImageFiles):
        sums = images.moments[indices].sum(axis=0)
    else:
        sums = sum((moments(piece) for piece in pieces(images, indices)), np.zeros((channels, 2), np.int64))
    means, stds = [], []
    for first, second in sums.tolist():
        means.append(first / (n * 255))
        stds.append(max((n * second - first * first) ** 0.5 / (n * 255), FLOOR))
    return means, stds


def constant_channels(stds: list[float]) -> list[str]:
    """A sentence for each channel that hardly varies."""
    return [
        f"channel {channel} is (almost) constant over the training images; its std is taken as 1/255"
        for channel, std in enumerate(stds)
        if std <= FLOOR
    ]


def missing_classes(counts: dict[str, list[int]], classes: list[str]) -> list[str]:
    """A sentence for each part that lacks classes. `counts`: images per class of each part."""
    found = []
    for part, per_class in counts.items():
        lacking = [name for name, count in zip(classes, per_class, strict=True) if not count]
        if lacking:
            shown = ", ".join(lacking[:5]) + (" …" if len(lacking) > 5 else "")
            found.append(f"{len(lacking)} of {len(classes)} classes have no image in {part}: {shown}")
    return found


def _keys(part: Split) -> list[bytes]:
    """A hash of each image."""
    if isinstance(part.images, ImageFiles):
        return [row.tobytes() for row in part.images.index["hash"][part.indices]]
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for piece in pieces(part.images, part.indices)
        for image in piece
    ]


def duplicates(parts: dict[str, Split]) -> list[str]:
    """Sentences on images (of files: their contents) that stand in two parts, or twice with different labels."""
    seen: dict[str, set[bytes]] = {}
    label_of: dict[bytes, int] = {}
    disputed: set[bytes] = set()
    found = []
    for name, part in parts.items():
        keys = _keys(part)
        for key, label in zip(keys, part.labels[part.indices].tolist(), strict=True):
            if label_of.setdefault(key, label) != label:
                disputed.add(key)
        for earlier, known in seen.items():
            copies = sum(key in known for key in keys)
            if copies:
                found.append(f"{copies} of {len(keys)} {name} images are exact copies of {earlier} images")
        seen[name] = set(keys)
    if disputed:
        found.append(f"images that occur more than once, with different labels: {len(disputed)}")
    return found

"""What the manifest says about the images: statistics of the pixels, and problems a user should know of."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd.data.raw import Images
from iakd.data.splits import Indices, Part

PIECE = 1024  # images handled at a time, so that a large data set needs little memory
FLOOR = 1 / 255  # least std: one grey level, so that a constant channel becomes 0 and not infinite


def pieces(array: NDArray[Any], indices: Indices) -> Iterator[NDArray[Any]]:
    """`array[indices]`, some images at a time."""
    for start in range(0, len(indices), PIECE):
        yield array[indices[start : start + PIECE]]


def mean_std(images: Images, indices: Indices) -> tuple[list[float], list[float]]:
    """Mean and (population) standard deviation of each channel over the images at `indices`, in 0–1 units.

    Exact up to the last division, because levels are counted. A std below one grey level is given as 1/255.
    """
    channels = images.shape[1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for piece in pieces(images, indices):
        for channel in range(channels):
            counts[channel] += np.bincount(piece[:, channel].ravel(), minlength=256)
    means, stds = [], []
    for levels in counts.tolist():
        n = sum(levels)
        first = sum(count * value for value, count in enumerate(levels))
        second = sum(count * value * value for value, count in enumerate(levels))
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


def duplicates(parts: dict[str, Part]) -> list[str]:
    """Sentences on images that stand, pixel by pixel, in two parts, or twice with different labels."""
    seen: dict[str, set[bytes]] = {}
    label_of: dict[bytes, int] = {}
    disputed: set[bytes] = set()
    found = []
    for name, part in parts.items():
        keys = [
            hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            for piece in pieces(part.images, part.indices)
            for image in piece
        ]
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

"""Perceptual hashes: images that look alike have hashes that differ in few bits, so near-duplicates can be counted."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from iakd.processes import cores

Hashes = NDArray[np.uint64]  # (N, WORDS)

SIDE = 32  # pixels to which an image is scaled
FREQUENCIES = 16  # lowest ones, in each direction
WORDS = FREQUENCIES**2 // 64
# Of 256 bits. JPEG at quality 60, brightness × 1.15, noise of 6 grey levels and half the resolution stay below it for
# 99 % of the photos of CIFAR-100; different photos of garments on the same background are at 52 and more.
MAX_DISTANCE = 44
MIN_CONTRAST = 2.0  # grey levels; the hash of a blank image is noise
BLOCK = 1 << 10  # images compared with as many others at a time
GREY = np.array([0.299, 0.587, 0.114], np.float64)  # ITU-R 601


def comparable(height: int, width: int) -> bool:
    """Return whether images of this size have enough pixels for a hash."""
    return min(height, width) >= FREQUENCIES


def perceptual_hashes(images: NDArray[np.uint8]) -> Hashes:
    """Return the perceptual hashes of images (N, C, H, W); zeros for images without contrast, and for tiny ones.

    pHash (Zauner 2010): which of the lowest frequencies of the grey image, in the cosine transform, are above their
    median.
    """
    from scipy.fft import dctn

    n, channels, height, width = images.shape
    if not comparable(height, width):
        return np.zeros((n, WORDS), np.uint64)
    weights = GREY if channels == len(GREY) else np.full(channels, 1 / channels, np.float64)
    grey = np.einsum("nchw,c->nhw", images.astype(np.float64), weights)
    small = _averaging(height) @ grey @ _averaging(width).T
    spectrum = dctn(small, axes=(1, 2))[:, :FREQUENCIES, :FREQUENCIES].reshape(n, -1)
    median = np.median(spectrum[:, 1:], axis=1, keepdims=True)  # without the mean brightness
    hashes = np.packbits(spectrum > median, axis=1).view(np.uint64)
    hashes[small.std(axis=(1, 2)) < MIN_CONTRAST] = 0
    return hashes


@cache
def _averaging(length: int) -> NDArray[np.float64]:
    """Return the matrix (SIDE, length) that scales a row of pixels to SIDE by averaging."""
    edges = np.linspace(0, length, SIDE + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(length)
    overlap = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float64)


def nearest(hashes: Hashes, others: Hashes) -> NDArray[np.int64]:
    """Return, for each of the hashes (N, WORDS), the position of the `others` (M, WORDS) that is nearest to it: int64
    (N,), -1 where all differ in more than MAX_DISTANCE bits.
    """
    result = np.full(len(hashes), -1)
    of_hashes, of_others = (np.flatnonzero(each.any(axis=1)) for each in (hashes, others))

    def of_block(rows: NDArray[np.int64]) -> None:
        best = np.full(len(rows), MAX_DISTANCE + 1)
        for start in range(0, len(of_others), BLOCK):
            columns = of_others[start : start + BLOCK]
            first, second = hashes[rows], others[columns]
            half = sum(np.bitwise_count(first[:, None, word] ^ second[None, :, word]) for word in range(WORDS // 2))
            row, column = np.nonzero(half <= MAX_DISTANCE)  # few are left for the other half
            distance = np.bitwise_count(first[row] ^ second[column]).sum(axis=1)
            order = np.lexsort((column, distance, row))
            row, closest = np.unique(row[order], return_index=True)
            closer = distance[order][closest] < best[row]
            best[row[closer]] = distance[order][closest][closer]
            result[rows[row[closer]]] = columns[column[order][closest][closer]]

    with ThreadPoolExecutor(cores()) as pool:  # numpy computes without the interpreter's lock
        list(pool.map(of_block, (of_hashes[start : start + BLOCK] for start in range(0, len(of_hashes), BLOCK))))
    return result

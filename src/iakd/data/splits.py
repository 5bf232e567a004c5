"""Random subsets that keep the proportions of the classes."""

import numpy as np
from numpy.typing import NDArray

from iakd.errors import UserError

Indices = NDArray[np.int64]


def stratified(labels: NDArray[np.int64], n: int, seed: int, setting: str = "split") -> Indices:
    """Positions of `n` images drawn at random by class, ascending, int64 (n,).

    Each class gives its share n·N_c/N, rounded down or up so that the sum is n (largest remainder, ties by lot).
    The draws use only numpy's raw generator, whose values no numpy release may change. Raises UserError, naming
    `setting`, where there are fewer than `n` images.
    """
    total = len(labels)
    if not 0 <= n <= total:
        raise UserError(f"{setting}: {n} images asked for where there are {total}; ask for fewer")
    lots = np.random.PCG64(seed).random_raw(total + (int(labels.max()) + 1 if total else 0))
    counts = np.bincount(labels)
    shares, remainders = np.divmod(counts * n, max(total, 1))
    by_remainder = np.lexsort((lots[total:], -remainders))
    shares[by_remainder[: n - shares.sum()]] += 1

    by_lot = np.lexsort((lots[:total], labels))  # class by class, at random within each
    rank = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_lot[rank < np.repeat(shares, counts)]).astype(np.int64)

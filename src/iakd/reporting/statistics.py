"""Means over seeds, and differences between two methods: intervals for new seeds and new test images.

A difference varies with the seeds of the trainings and with the images of the test set. Both are taken as samples: the
interval is for the difference that further trainings would have on further images of the same kind. It does not cover
what all seeds have in common: the training images, a teacher that they share, the settings.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

MIN_SEEDS = 3  # to call a difference significant: two seeds are alike by chance too often
SMALLEST_P = -100.0  # its logarithm; smaller ones are rounded up to it

Floats = NDArray[np.float64]
Correct = NDArray[np.bool_]  # (images,), whether each test image was classified correctly


@dataclass(frozen=True)
class SeedMean:
    """Mean over `n` seeds; `std` is the sample standard deviation (n - 1), None for a single seed."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference over the seeds that two methods share, in points of accuracy, with its interval.

    One seed has neither bounds nor p. `p_adjusted` and `significant` are set by `judge`, for all differences together.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None  # two-sided: one minus the confidence of the interval that ends at zero
    p_adjusted: float | None = None
    significant: bool = False

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero, as some of many do by chance."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def reversed(self) -> "PairedDifference":
        """Return the same difference with the methods exchanged."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return replace(self, mean=-self.mean, low=low, high=high)


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Return mean and sample standard deviation of at least one value."""
    return SeedMean(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Errors:
    """The variances of mean differences (…): the same formulas for one and for many at once.

    `seeds`: that of the mean over the seeds, from their spread. `images`: the sampling error of the test set, from the
    differences of each image, averaged over the seeds; with one seed it is McNemar's. `both`: what `seeds` and `images`
    both contain, the chance that belongs to single images in single trainings.
    """

    seeds: Floats
    images: Floats
    both: Floats
    degrees: tuple[int, int]  # of freedom: seeds - 1, images - 1

    def half_width(self, level: float | Floats) -> Floats:
        """Return half the width of the interval that misses the truth with probability `level`.

        The half-widths for the seeds and for what the images add to them are added as squares: each is that of a t
        interval, and so the sum is wide enough whatever the ratio of the two (proof: docs/report.md). It is never less
        than the test set's own sampling error.
        """
        from scipy.special import stdtrit  # here, because it takes time to import

        t_seeds, t_images = (-stdtrit(degrees, np.asarray(level) / 2) for degrees in self.degrees)
        added = np.maximum(self.images - self.both, 0.0)
        return np.sqrt(np.maximum(t_seeds**2 * self.seeds + t_images**2 * added, t_images**2 * self.images))

    def p_values(self, means: Floats) -> Floats:
        """Return the level at which the interval around each of `means` (…) ends at zero; 1 for a mean of zero."""
        low, high = np.full(means.shape, SMALLEST_P), np.zeros(means.shape)
        for _ in range(50):  # bisection of the logarithm: half-widths shrink as the level grows
            middle = (low + high) / 2
            excludes = self.half_width(10.0**middle) < np.abs(means)
            low, high = np.where(excludes, low, middle), np.where(excludes, middle, high)
        return np.where(means == 0, 1.0, 10.0**high)


def errors(by_seed: Floats, image_squares: Floats, squares: Floats, images: int) -> Errors:
    """Return the variances of mean differences of per-image scores d, from their sums.

    `by_seed` (…, seeds): the mean of d over the images. `image_squares` (…): the sum over the images of the square of
    d's mean over the seeds. `squares` (…): the sum of d² over all seeds and images.
    """
    n = by_seed.shape[-1]
    mean = by_seed.mean(-1)
    free = max((n - 1) * (images - 1), 1)
    residual = squares - n * image_squares - images * (by_seed**2).sum(-1) + n * images * mean**2
    return Errors(
        seeds=by_seed.var(-1, ddof=1) / n,
        images=image_squares / images**2,
        both=np.maximum(residual, 0.0) / free / (n * images),
        degrees=(n - 1, max(images - 1, 1)),
    )


def paired_difference(
    scores: Mapping[int, Correct], reference: Mapping[int, Correct], confidence: float
) -> PairedDifference | None:
    """Return scores − reference over the seeds in both, in points, with its interval; None if they share no seed.

    Both have, by seed, whether each image (images,) of the same test set was classified correctly. The interval has the
    given confidence, a fraction.
    """
    seeds = sorted(scores.keys() & reference.keys())
    if not seeds:
        return None
    d = np.stack([scores[seed].astype(np.int8) - reference[seed].astype(np.int8) for seed in seeds])
    n, images = d.shape
    by_seed = d.mean(1)
    mean = float(by_seed.mean())
    if n == 1:
        return PairedDifference(n, 100 * mean, None, None, None)
    image_squares = float((d.sum(0, dtype=np.int64) ** 2).sum()) / n**2
    found = errors(by_seed, np.array(image_squares), np.array(float(np.abs(d).sum(dtype=np.int64))), images)
    half = float(found.half_width(1 - confidence))
    p = float(found.p_values(np.array(mean)))
    return PairedDifference(n, 100 * mean, 100 * (mean - half), 100 * (mean + half), p)


def judge(differences: Sequence[PairedDifference], level: float) -> list[PairedDifference]:
    """Return the differences with `p_adjusted` and `significant` set, given all that are looked at together.

    If none of them is real, the probability that any is called significant is at most `level`. Those of fewer than
    MIN_SEEDS seeds never are, and do not count.
    """
    counted = [i for i, one in enumerate(differences) if one.p is not None and one.n >= MIN_SEEDS]
    adjusted = holm([p for i in counted if (p := differences[i].p) is not None])
    judged = list(differences)
    for i, p in zip(counted, adjusted, strict=True):
        judged[i] = replace(differences[i], p_adjusted=p, significant=p <= level)
    return judged


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number: at most `level` for those rejected at that family-wise error rate.

    Holm's step-down procedure (1979). Ours because scipy has none.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for position, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - position)))
        adjusted[i] = largest
    return adjusted

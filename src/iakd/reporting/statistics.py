"""Means over seeds, and differences between two methods with an interval from the paired t test."""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SeedMean:
    """Mean over `n` seeds; `std` is the sample standard deviation (n - 1), None for a single seed."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference over the seeds that two methods share, with a t interval; no bounds and no p for one seed."""

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None  # two-sided, of the paired t test

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Return mean and sample standard deviation of at least one value."""
    return SeedMean(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_difference(
    scores: Mapping[int, float], reference: Mapping[int, float], confidence: float
) -> PairedDifference | None:
    """Return scores − reference, by seed, over the seeds in both, with its interval; None if they share no seed.

    The interval has the given confidence, a fraction; if all differences are equal it has no width.
    """
    seeds = sorted(scores.keys() & reference.keys())
    if not seeds:
        return None
    difference = seed_mean([scores[seed] - reference[seed] for seed in seeds])
    if difference.std is None:
        return PairedDifference(difference.n, difference.mean, None, None, None)
    if not difference.std:  # the t statistic is infinite or undefined
        mean = difference.mean
        return PairedDifference(difference.n, mean, mean, mean, 0.0 if mean else 1.0)
    from scipy import stats  # here, because it takes a second or more to import

    with warnings.catch_warnings():  # it warns of a loss of precision where differences are equal but for rounding
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_rel([scores[seed] for seed in seeds], [reference[seed] for seed in seeds])
        interval = test.confidence_interval(confidence)
    return PairedDifference(
        difference.n, difference.mean, float(interval.low), float(interval.high), float(test.pvalue)
    )


def holm_rejections(p_values: Sequence[float], level: float) -> list[bool]:
    """Return which null hypotheses are rejected at a family-wise error rate of at most `level` (Holm 1979).

    Ours because scipy has no Holm correction.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for position, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - position):
            break
        rejected[i] = True
    return rejected

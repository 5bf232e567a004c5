"""Means over seeds, and differences between methods with an honest interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats has the same and takes a second to import


@dataclass(frozen=True)
class Mean:
    """Mean over seeds; `std` is the sample's (n - 1), None for a single seed."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Mean difference over the seeds that two methods share, with a t interval; the bounds are None for one seed."""

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None  # two-sided, of the paired t test

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def judgement(self) -> str:
        """'certain', 'not certain', or that one seed can say nothing."""
        if self.low is None:
            return "one seed only"
        return "certain" if self.certain else "not certain"


def mean(values: Sequence[float]) -> Mean:
    """Mean and sample standard deviation of at least one value."""
    return Mean(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float) -> Difference | None:
    """ours − theirs over the seeds that both have, with the t interval of `confidence`; None where they share none.

    With differences that are all equal the interval has no width.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    result = mean(differences)
    if result.std is None:
        return Difference(result.n, result.mean, None, None, None)
    error = result.std / math.sqrt(result.n)
    half = float(stdtrit(result.n - 1, (1 + confidence) / 2)) * error
    ratio = abs(result.mean) / error if error else math.inf if result.mean else 0.0
    p = 2 * float(stdtr(result.n - 1, -ratio))
    return Difference(result.n, result.mean, result.mean - half, result.mean + half, p)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which of several hypotheses fall when the chance of even one false alarm is to stay below `level` (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    fallen = [False] * len(p_values)
    for position, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - position):
            break
        fallen[i] = True
    return fallen

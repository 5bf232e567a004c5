"""A stretch of numbers to draw on, that one failed training or one huge interval cannot spoil."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, with round numbers to mark."""

    low: float
    high: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """Where `value` is drawn, in percent of the width; what lies outside sticks to the edge."""
        return 100.0 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def outside(self, value: float) -> bool:
        """Whether `value` lies beyond either end."""
        return not self.low <= value <= self.high


def fit(centres: Sequence[float], ends: Sequence[float], ticks: int = 4) -> Scale:
    """A scale that shows `centres` well, and of `ends` (seeds, bounds of intervals) what is not too far out.

    Centres further below the lower quartile than four times the distance between the quartiles stay outside: a
    method that failed in training. Ends widen the scale by at most the span of the centres, to either side.
    """
    q1, q3 = np.quantile(centres, [0.25, 0.75])
    reach = 4 * (q3 - q1)
    shown = [c for c in centres if q1 - reach <= c <= q3 + reach]
    low, high = min(shown), max(shown)
    room = max(high - low, 0.5)
    low = max(low - room, min([low, *ends]))
    high = min(high + room, max([high, *ends]))
    margin = 0.06 * max(high - low, 0.1)
    low, high = low - margin, high + margin
    marks = [float(t) for t in MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return Scale(float(low), float(high), [t for t in marks if low <= t <= high])

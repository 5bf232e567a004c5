"""The swap-probability schedules: p_i(t), the probability that student block i is kept (docs/method.md)."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iakd.params import Schedule


def keep_probabilities(
    schedule: Schedule, steps: NDArray[np.int64], total: int, drops: Sequence[int], blocks: int
) -> NDArray[np.float64]:
    """p_i at each of `steps` (counted from 0, of `total`), shape (len(steps), blocks).

    `drops` are the steps at which the learning rate drops; `review` starts anew at each of them, or, where the rate
    has no drops, at `cycles` equal phases. The last round(solo·total) steps have p = 1.
    """
    solo_start = total - round(schedule.solo * total)
    starts = _phase_starts(schedule, solo_start, total, drops)
    base = np.array([_base(schedule, int(step), total, starts, solo_start) for step in steps])
    depth = np.arange(blocks) / (blocks - 1) - 0.5 if blocks > 1 else np.zeros(1)
    p = np.clip(base[:, None] + schedule.slope * depth[None, :], 0.0, 1.0)
    p[np.asarray(steps) >= solo_start] = 1.0
    return p


def _phase_starts(schedule: Schedule, solo_start: int, total: int, drops: Sequence[int]) -> list[int]:
    """First steps of the phases over which the schedule grows from p0; the first is step 0."""
    if schedule.kind == "review" and drops:
        return [0, *(step for step in drops if 0 < step < solo_start)]
    if schedule.kind in ("review", "cyclic"):
        return [round(cycle * solo_start / schedule.cycles) for cycle in range(schedule.cycles)]
    return [0]


def _base(schedule: Schedule, step: int, total: int, starts: list[int], solo_start: int) -> float:
    """p before the tilt over depth."""
    s = schedule
    if s.kind == "uniform":
        return s.p0
    phase = max(i for i, start in enumerate(starts) if start <= step)
    begin = starts[phase]
    if s.kind in ("review", "cyclic"):
        end = starts[phase + 1] if phase + 1 < len(starts) else max(solo_start, begin + 1)
    else:
        end = total
    progress = (step - begin) / (end - begin)  # of the phase; of the whole training where there is one phase
    if s.kind == "cyclic":  # down and up again: a cosine wave from p0 to p1 and back
        return s.p0 + (s.p1 - s.p0) * (1 - math.cos(2 * math.pi * progress)) / 2
    return s.p0 + (s.p1 - s.p0) * _growth(s, min(1.0, progress / s.t_end))


def _growth(schedule: Schedule, x: float) -> float:
    """Growth from 0 to 1 over x in [0, 1]."""
    match schedule.kind:
        case "cosine":
            return (1 - math.cos(math.pi * x)) / 2
        case "step":
            return min(math.floor(x * schedule.steps), schedule.steps - 1) / max(1, schedule.steps - 1)
        case "sigmoid":  # rescaled so that it starts at 0 and ends at 1 whatever the steepness
            low, high = _logistic(-schedule.steepness / 2), _logistic(schedule.steepness / 2)
            return (_logistic(schedule.steepness * (x - 0.5)) - low) / (high - low)
        case _:  # linear, review
            return x


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))

"""The swap-probability schedule at work: p_i(t), the probability that student block i is kept (docs/method.md)."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iakd.config.schedule import KINDS, Schedule


def keep_probabilities(
    schedule: Schedule, steps: NDArray[np.int64], total: int, lr_drops: Sequence[int], blocks: int
) -> NDArray[np.float64]:
    """p_i at each of `steps` (counted from 0, of `total`), shape (len(steps), blocks).

    p_i = clip(base(t) + slope·(i/(blocks − 1) − 1/2), 0, 1). `lr_drops` are the steps at which the learning rate drops.
    The last round(student_only·total) steps have p = 1.
    """
    student_only = total - round(schedule.student_only * total)  # first of these steps
    starts = _phase_starts(schedule, student_only, lr_drops)
    base = np.array([_base(schedule, int(step), total, starts, student_only) for step in steps])
    depth = np.arange(blocks) / (blocks - 1) - 0.5 if blocks > 1 else np.zeros(1)
    p = np.clip(base[:, None] + schedule.slope * depth[None, :], 0.0, 1.0)
    p[np.asarray(steps) >= student_only] = 1.0
    return p


def _phase_starts(schedule: Schedule, student_only: int, lr_drops: Sequence[int]) -> list[int]:
    """First steps of the phases over which p goes from p0 to p1; the first is step 0."""
    match KINDS[schedule.kind].phases:
        case "lr_drops" if lr_drops:
            return [0, *(step for step in lr_drops if 0 < step < student_only)]
        case "lr_drops" | "cycles":
            return [round(cycle * student_only / schedule.cycles) for cycle in range(schedule.cycles)]
        case _:
            return [0]


def _base(schedule: Schedule, step: int, total: int, starts: list[int], student_only: int) -> float:
    """p before the tilt over depth."""
    kind = KINDS[schedule.kind]
    phase = bisect_right(starts, step) - 1
    begin = starts[phase]
    if kind.phases == "one":
        end = total
    else:
        end = starts[phase + 1] if phase + 1 < len(starts) else max(student_only, begin + 1)
    x = (step - begin) / (end - begin)
    if "t_end" in kind.settings:
        x = min(1.0, x / schedule.t_end)
    return schedule.p0 + (schedule.p1 - schedule.p0) * kind.shape(schedule, x)

"""Where phases begin and end when they do not divide the training evenly, and how depth tilts p in shallow networks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from iakd.config import KINDS, Schedule
from iakd.interactive.schedule import keep_probabilities


def planned(schedule: Schedule, total: int, drops: list[int] | None = None, blocks: int = 1) -> NDArray[np.float64]:
    return keep_probabilities(schedule, np.arange(total), total, drops or [], blocks)


@pytest.mark.parametrize(("share", "total", "steps"), [(0.26, 10, 3), (0.24, 10, 2), (0.2, 7, 1), (0.0, 7, 0)])
def test_the_student_only_phase_is_rounded_to_the_nearest_step(share: float, total: int, steps: int) -> None:
    p = planned(Schedule(kind="uniform", p0=0.3, student_only=share), total)[:, 0]
    assert p.tolist() == [0.3] * (total - steps) + [1.0] * steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_may_be_the_students_alone(kind: str) -> None:
    schedule = Schedule(kind=kind, p0=0.1, p1=0.2, student_only=1.0)
    assert (planned(schedule, 12) == 1).all()
    assert (planned(schedule, 12, drops=[4, 8]) == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_more_cycles_than_steps_are_no_harm(kind: str) -> None:
    """One step before the student_only phase, and four cycles to fit into it."""
    p = planned(Schedule(kind=kind, p0=0.4, p1=0.9, cycles=4, student_only=0.9), 10)[:, 0]
    assert p.tolist() == [0.4] + [1.0] * 9


def test_cycles_begin_at_the_nearest_step() -> None:
    """Of eight steps three cycles take 8/3 each: they begin at 0, 2.7 and 5.3."""
    p = planned(Schedule(kind="review", p0=0.2, p1=0.8, t_end=1.0, cycles=3, student_only=0.0), 8)[:, 0]
    thirds, half = [0.2, 0.4, 0.6], [0.2, 0.5]
    assert p == pytest.approx([*thirds, *half, *thirds])


def test_drops_within_the_student_only_phase_do_not_count() -> None:
    schedule = Schedule(kind="review", p0=0.2, t_end=1.0, student_only=0.5)
    expected = planned(schedule, 20, drops=[4])
    for drops in ([4, 10], [4, 12, 15], [0, 4]):
        assert planned(schedule, 20, drops).tolist() == expected.tolist()
    assert expected[:10, 0] == pytest.approx([0.2, 0.4, 0.6, 0.8, *(0.2 + 0.8 * i / 6 for i in range(6))])


def test_a_drop_after_the_first_step_begins_a_phase() -> None:
    p = planned(Schedule(kind="review", p0=0.2, t_end=1.0, student_only=0.0), 5, drops=[1])[:, 0]
    assert p == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8])


def test_depth_tilts_two_blocks_and_leaves_a_single_one() -> None:
    schedule = Schedule(kind="uniform", p0=0.5, slope=0.4, student_only=0.0)
    assert planned(schedule, 3, blocks=2).tolist() == [pytest.approx([0.3, 0.7])] * 3
    assert planned(schedule, 3, blocks=1).tolist() == [[0.5]] * 3


def test_any_steps_may_be_asked_for() -> None:
    """In any order, as a whole training or one by one."""
    schedule = Schedule(kind="review", p0=0.1, slope=0.2, cycles=3)
    every = planned(schedule, 30, blocks=4)
    chosen = np.array([29, 3, 3, 17])
    assert keep_probabilities(schedule, chosen, 30, [], 4).tolist() == every[chosen].tolist()

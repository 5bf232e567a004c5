"""The schedule family against its formulas."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from iakd.config import LrSchedule, Schedule
from iakd.interactive.schedule import keep_probabilities
from iakd.training.timeline import Timeline

TOTAL = 1000
KINDS = ["uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic"]


def probabilities(schedule: Schedule, drops: list[int] | None = None, blocks: int = 1) -> NDArray[np.float64]:
    return keep_probabilities(schedule, np.arange(TOTAL), TOTAL, drops or [], blocks)


def test_uniform_is_p0_and_then_1_for_the_student_only_phase() -> None:
    p = probabilities(Schedule(kind="uniform", p0=0.3, student_only=0.25))[:, 0]
    assert (p[:750] == 0.3).all() and (p[750:] == 1.0).all()


def test_linear_grows_from_p0_to_p1_at_t_end() -> None:
    p = probabilities(Schedule(kind="linear", p0=0.2, p1=0.9, t_end=0.5, student_only=0.1))[:, 0]
    expected = [0.2 + 0.7 * min(1.0, (step / TOTAL) / 0.5) for step in range(900)]
    assert p[:900] == pytest.approx(expected)
    assert (p[900:] == 1.0).all()


def test_cosine_follows_half_a_wave() -> None:
    p = probabilities(Schedule(kind="cosine", p0=0.1, p1=0.9, t_end=1.0, student_only=0.0))[:, 0]
    assert p == pytest.approx([0.1 + 0.8 * (1 - math.cos(math.pi * s / TOTAL)) / 2 for s in range(TOTAL)])


def test_step_has_equal_stairs_from_p0_to_p1() -> None:
    p = probabilities(Schedule(kind="step", p0=0.1, p1=0.7, t_end=1.0, student_only=0.0, steps=4))[:, 0]
    values, counts = np.unique(p.round(9), return_counts=True)
    assert values == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert counts.tolist() == [250, 250, 250, 250]


def test_sigmoid_is_symmetric_and_steepest_in_the_middle() -> None:
    p = probabilities(Schedule(kind="sigmoid", p0=0.0, p1=1.0, t_end=1.0, student_only=0.0))[:, 0]
    assert p[0] == 0.0 and p[500] == pytest.approx(0.5) and p[-1] > 0.99
    assert p[250] == pytest.approx(1 - p[750])
    assert np.argmax(np.diff(p)) in (499, 500)


def test_cyclic_has_n_waves() -> None:
    p = probabilities(Schedule(kind="cyclic", p0=0.2, p1=0.8, student_only=0.1, cycles=3))[:900, 0]
    assert p[[0, 300, 600]] == pytest.approx(0.2)
    assert p[[150, 450, 750]] == pytest.approx(0.8)


def test_review_restarts_exactly_at_the_learning_rate_drops() -> None:
    timeline = Timeline(100, 10, 0.1, LrSchedule(milestones=[0.3, 0.62]), 64)
    p = probabilities(Schedule(kind="review", p0=0.4, p1=1.0, t_end=0.5, student_only=0.1), timeline.drops)[:, 0]
    rates = np.array([timeline.lr(step) for step in range(TOTAL)])
    dropped = [0, *(np.flatnonzero(np.diff(rates)) + 1)]
    assert dropped == [0, 300, 620]
    restarts = [0, *(np.flatnonzero(np.diff(p) < 0) + 1)]
    assert restarts == dropped
    assert p[restarts] == pytest.approx(0.4)
    for start, end in ((0, 300), (300, 620), (620, 900)):
        local = (np.arange(start, end) - start) / (end - start)
        assert p[start:end] == pytest.approx(0.4 + 0.6 * np.minimum(1, local / 0.5))


def test_review_under_a_smooth_learning_rate_has_its_own_cycles() -> None:
    p = probabilities(Schedule(kind="review", p0=0.4, student_only=0.0, cycles=4))[:, 0]
    assert [0, *(np.flatnonzero(np.diff(p) < 0) + 1)] == [0, 250, 500, 750]


def test_a_single_step_reaches_p1_at_t_end() -> None:
    schedule = Schedule(kind="step", p0=0.1, p1=0.7, t_end=0.6, student_only=0.1, steps=1)
    p = probabilities(schedule)[:, 0]
    assert (p[:600] == 0.1).all() and p[600:900] == pytest.approx(0.7) and (p[900:] == 1.0).all()


EXTREME: dict[str, list[float]] = {  # some of them beyond what settings accept
    "p0": [0.0, 5e-324, 0.5, 1.0],
    "p1": [0.0, 5e-324, 0.5, 1.0],
    "t_end": [5e-324, 1e-300, 1e-9, 0.3, 1.0],
    "slope": [-2.0, -5e-324, 0.0, 2.0],
    "student_only": [0.0, 5e-324, 0.5, 1.0],
    "cycles": [1, 3, 1000],
    "steps": [1, 2, 1000],
    "steepness": [1e-300, 1e-17, 10.0, 1420.0, 1e308],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_that_is_accepted_gives_probabilities(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        settings = {name: values[rng.integers(len(values))] for name, values in EXTREME.items()}
        total, blocks = int(rng.choice([1, 2, 7, 40])), int(rng.choice([1, 2, 9]))
        drops = sorted({int(step) for step in rng.integers(0, total + 1, rng.integers(3))})
        schedule = Schedule.model_construct(kind=kind, **settings)
        p = keep_probabilities(schedule, np.arange(total), total, drops, blocks)
        assert p.shape == (total, blocks)
        assert np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all(), settings


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_at_p0_ends_at_1_and_stays_a_probability(kind: str) -> None:
    p = probabilities(Schedule(kind=kind, p0=0.35, slope=0.0, student_only=0.2), drops=[400])
    assert p[0, 0] == pytest.approx(0.35)
    assert (p[800:] == 1.0).all() and (p >= 0).all() and (p <= 1).all()
    assert (p[:800] < 1.0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_depth_tilts_by_the_slope_and_is_clipped(kind: str) -> None:
    flat = probabilities(Schedule(kind=kind, p0=0.5, p1=0.8), blocks=5)
    tilted = probabilities(Schedule(kind=kind, p0=0.5, p1=0.8, slope=0.3), blocks=5)
    assert tilted[0] - flat[0] == pytest.approx(0.3 * (np.arange(5) / 4 - 0.5))
    steep = probabilities(Schedule(kind=kind, p0=0.5, slope=2.0), blocks=3)
    assert steep[0].tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert (steep[800:] == 1.0).all(), "the student_only phase is not tilted"

"""Kinds of swap-probability schedule: shapes against formulas, the settings that each uses, and their bounds."""

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from iakd.config import KINDS, Schedule
from iakd.config.schedule import PAPER_KINDS, settings_used


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def stairs(steps: int) -> Callable[[float], float]:
    """`steps` equally long stairs, the first at 0 and the last at 1."""
    heights = np.linspace(0, 1, steps)
    return lambda x: float(heights[next(i for i in range(steps) if x < (i + 1) / steps or i == steps - 1)])


def sigmoid(steepness: float) -> Callable[[float], float]:
    """The part of a logistic curve between −steepness/2 and steepness/2, stretched to [0, 1] × [0, 1]."""
    low, high = logistic(-steepness / 2), logistic(steepness / 2)
    return lambda x: (logistic(steepness * x - steepness / 2) - low) / (high - low)


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ({"kind": "uniform"}, lambda x: 0.0),
        ({"kind": "linear"}, lambda x: x),
        ({"kind": "review"}, lambda x: x),
        ({"kind": "cosine"}, lambda x: math.sin(math.pi * x / 2) ** 2),
        ({"kind": "cyclic"}, lambda x: math.sin(math.pi * x) ** 2),
        ({"kind": "step"}, stairs(4)),
        ({"kind": "step", "steps": 2}, stairs(2)),
        ({"kind": "step", "steps": 7}, stairs(7)),
        ({"kind": "sigmoid"}, sigmoid(10)),
        ({"kind": "sigmoid", "steepness": 3.5}, sigmoid(3.5)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "reference",
)
def test_a_shape_is_its_formula(schedule: dict[str, object], reference: Callable[[float], float]) -> None:
    settings = Schedule.model_validate(schedule)
    progress = [*np.linspace(0, 1, 57), 0.25, 0.5, 0.75]
    shape = [KINDS[settings.kind].shape(settings, float(x)) for x in progress]
    assert shape == pytest.approx([reference(x) for x in progress], abs=1e-12)


def test_a_single_step_is_at_t_end() -> None:
    one = Schedule(kind="step", steps=1)
    assert [KINDS["step"].shape(one, x) for x in (0.0, 0.5, 0.999, 1.0)] == [0, 0, 0, 1]


def steep(steepness: float) -> Callable[[float], float]:
    """The shape of a sigmoid, also of one beyond what settings allow."""
    schedule = Schedule.model_construct(kind="sigmoid", steepness=steepness)
    return lambda x: KINDS["sigmoid"].shape(schedule, x)


@pytest.mark.parametrize("steepness", [1e-300, 1e-17, 1e-8, 1e-6, 1e-3])
def test_a_sigmoid_without_steepness_is_a_straight_line(steepness: float) -> None:
    shape = [steep(steepness)(x) for x in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert shape == pytest.approx([0, 0.1, 0.5, 0.9, 1], abs=1e-15 + steepness**2)


@pytest.mark.parametrize("steepness", [1420, 1e5, 1e300, sys.float_info.max])
def test_a_sigmoid_of_any_steepness_is_a_step_in_the_middle(steepness: float) -> None:
    shape = [steep(steepness)(x) for x in (0.0, 0.45, 0.5, 0.55, 1.0)]
    assert shape == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("uniform", "cyclic")])
@pytest.mark.parametrize("extreme", [{}, {"steps": 1, "steepness": 1e-17}, {"steps": 1000, "steepness": 1420.0}])
def test_a_growing_kind_starts_at_0_ends_at_1_and_never_falls(kind: str, extreme: dict[str, float]) -> None:
    schedule = Schedule.model_construct(kind=kind, **extreme)
    shape = [KINDS[kind].shape(schedule, x) for x in np.linspace(0, 1, 101)]
    assert (shape[0], shape[-1]) == pytest.approx((0, 1))
    assert (np.diff(shape) >= 0).all()


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("uniform", []),
        ("linear", ["p1", "t_end"]),
        ("review", ["p1", "t_end", "cycles"]),
        ("cosine", ["p1", "t_end"]),
        ("step", ["p1", "t_end", "steps"]),
        ("sigmoid", ["p1", "t_end", "steepness"]),
        ("cyclic", ["p1", "cycles"]),
    ],
)
def test_settings_that_p_depends_on(kind: str, own: list[str]) -> None:
    """In the order in which a study draws them: another order would be another study."""
    assert list(settings_used(kind, lr_drops=False)) == ["p0", "slope", "student_only", *own]
    without_cycles = [name for name in own if not (kind == "review" and name == "cycles")]
    assert list(settings_used(kind, lr_drops=True)) == ["p0", "slope", "student_only", *without_cycles]


@pytest.mark.parametrize(
    ("setting", "inside", "outside"),
    [
        ("p0", [0.0, 1.0], [-0.01, 1.01]),
        ("p1", [0.0, 1.0], [-0.01, 1.01]),
        ("student_only", [0.0, 1.0], [-0.01, 1.01]),
        ("t_end", [0.001, 1.0], [0.0, 1.01]),
        ("slope", [-2.0, 2.0], [-2.01, 2.01]),
        ("cycles", [1], [0]),
        ("steps", [1], [0]),
        ("steepness", [0.001], [0.0]),
    ],
)
def test_bounds(setting: str, inside: list[float], outside: list[float]) -> None:
    for value in inside:
        assert getattr(Schedule.model_validate({setting: value}), setting) == value
    for value in outside:
        with pytest.raises(ValidationError, match=setting):
            Schedule.model_validate({setting: value})


def test_an_unknown_kind_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ValidationError, match=r"unknown kind 'cosin'.*did you mean 'cosine'.*known: uniform, linear"):
        Schedule(kind="cosin")


def test_the_schema_lists_the_kinds() -> None:
    assert Schedule.model_json_schema()["properties"]["kind"]["enum"] == list(KINDS)
    assert set(PAPER_KINDS) == {"uniform", "linear", "review"}

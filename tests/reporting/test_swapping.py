"""Which row is the counterpart of a method with swaps, and what swapping added, for made-up results."""

import statistics
from dataclasses import dataclass, field
from typing import Any

import pytest

from iakd.config import Method, Recipe
from iakd.reporting.statistics import PairedDifference
from iakd.reporting.swapping import SwapEffect, by_counterpart
from iakd.reporting.swapping import swap_effects as effects_of


@dataclass
class Row:
    """A method with its results; `seconds` are those of one epoch."""

    label: str
    method: Method
    recipe: Recipe
    seconds: float
    scores: dict[int, float]
    devices: frozenset[str] = field(default=frozenset({"cpu"}))

    @property
    def epoch_seconds(self) -> list[float]:
        return [self.seconds] * self.recipe.epochs


def compare(first: Row, second: Row) -> PairedDifference | None:
    """The mean difference over common seeds, without an interval."""
    differences = [first.scores[seed] - second.scores[seed] for seed in first.scores.keys() & second.scores.keys()]
    if not differences:
        return None
    return PairedDifference(len(differences), statistics.fmean(differences), None, None, None)


def swap_effects(rows: list[Row]) -> list[SwapEffect]:
    return effects_of(rows, compare)


def row(label: str, scores: Any = (90.0, 91.0, 92.0), seconds: float = 1.0, **settings: Any) -> Row:
    """Return a row; `settings` are those of the method, and `device`."""
    device = settings.pop("device", "cpu")
    method = Method.model_validate({"method": label, **settings})
    recipe = Recipe.model_validate({"epochs": 100, **method.recipe})
    by_seed = scores if isinstance(scores, dict) else dict(enumerate(scores))
    return Row(label, method, recipe, seconds, by_seed, frozenset({device}))


def longer(label: str, epochs: int, **settings: Any) -> Row:
    return row(label, recipe={"epochs": epochs}, **settings)


def effect(rows: list[Row], condition: str = "equal_epochs", method: str = "") -> Any:
    (found,) = [
        effect
        for effect in swap_effects(rows)
        if effect.condition == condition and effect.method == (method or rows[0].label)
    ]
    return found


def test_difference_to_the_same_loss_without_swaps():
    """kd + 1, 2 and 3 points."""
    found = effect([row("iakd+kd", (91, 93, 95)), row("scratch", (80, 80, 80)), row("kd", (90, 91, 92))])
    assert (found.counterpart, found.difference.mean, found.difference.n) == ("kd", 2.0, 3)


@pytest.mark.parametrize(
    ("swapping", "counterpart"),
    [
        ({"method": "iakd"}, {"method": "scratch"}),
        ({"method": "iakd", "iakd": {"form": "two_path", "weight": 0.5}}, {"method": "scratch"}),
        ({"method": "iakd+kd"}, {"method": "kd"}),
        ({"method": "kd+iakd+fitnet"}, {"method": "fitnet+kd"}),
        ({"method": "iakd+kcd"}, {"method": "kcd+kd"}),  # kcd alone brings kd
        ({"method": "iakd+kd", "init": "teacher"}, {"method": "kd", "init": "teacher"}),
        ({"method": "iakd+kd", "kd": {"temperature": 2}}, {"method": "kd", "kd": {"temperature": 2.0}}),
        ({"method": "iakd+kd"}, {"method": "kd", "kd": {"temperature": 4.0}}),  # the default, written out
        ({"method": "kd+rcn", "rcn": {"mean_only": 0.5}}, {"method": "kd"}),
        ({"method": "rcn"}, {"method": "scratch"}),
        ({"method": "iakd", "recipe": {"lr": 0.2}}, {"method": "scratch", "recipe": {"lr": 0.2, "validate_every": 3}}),
    ],
)
def test_counterpart_is_found_whatever_its_label(swapping, counterpart):
    found = effect([row("a", **swapping), row("b", **counterpart)])
    assert (found.counterpart, found.difference.mean) == ("b", 0.0)


@pytest.mark.parametrize(
    ("swapping", "other", "differs_in"),
    [
        ({"method": "iakd"}, {"method": "scratch", "init": "teacher"}, ("init",)),
        ({"method": "iakd", "init": "teacher"}, {"method": "scratch"}, ("init",)),
        ({"method": "iakd+kd"}, {"method": "kd", "kd": {"temperature": 2}}, ("kd.temperature",)),
        ({"method": "iakd"}, {"method": "scratch", "recipe": {"lr": 0.2}}, ("recipe.lr",)),
        ({"method": "iakd"}, {"method": "scratch", "recipe": {"augment": {"pad": 2}}}, ("recipe.augment.pad",)),
        ({"method": "iakd"}, {"method": "scratch", "recipe": {"epochs": 101}}, ("epochs",)),
    ],
)
def test_row_that_differs_is_no_counterpart_but_named(swapping, other, differs_in):
    found = effect([row("a", **swapping), row("b", seconds=0.5, **other)])
    assert (found.counterpart, found.difference) == (None, None)
    assert (found.nearest, found.differs_in) == ("b", differs_in)


def test_of_several_rows_with_the_same_loss_the_nearest_is_named():
    far = row("far", method="kd", init="teacher", kd={"temperature": 2}, recipe={"lr": 0.2})
    near = row("near", method="kd", init="teacher")
    assert effect([row("iakd+kd"), far, near]).nearest == "near"


@pytest.mark.parametrize("other", ["scratch", "kd+fitnet", "dkd", "iakd+kd", "kd+rcn"])
def test_another_loss_is_no_counterpart(other):
    found = effect([row("a", method="iakd+kd"), row("b", method=other)], method="a")
    assert (found.counterpart, found.nearest) == (None, None)


def test_methods_without_swaps_have_no_effect_of_swapping():
    assert swap_effects([row("kd"), row("scratch")]) == []


# Equal training time: the method with swaps trains for 100 epochs of 1.4 s, kd for epochs of 1 s.

SWAPPING = {"label": "iakd+kd", "seconds": 1.4}


def test_equal_time_is_the_row_that_trained_for_as_long():
    rows = [row(**SWAPPING), row("kd"), longer("kd-140", 140, method="kd", scores=(89.0, 90.0, 91.0))]
    assert effect(rows).counterpart == "kd"
    found = effect(rows, "equal_time")
    assert (found.counterpart, found.difference.mean) == ("kd-140", 1.0)
    assert found.time_ratio == pytest.approx(1.0)


def test_equal_time_is_the_shortest_that_is_long_enough():
    rows = [row(**SWAPPING)] + [longer(f"kd-{epochs}", epochs, method="kd") for epochs in (400, 120, 136, 150)]
    found = effect(rows, "equal_time")
    assert (found.counterpart, found.time_ratio) == ("kd-136", pytest.approx(0.9714, abs=1e-4))


def test_counterpart_that_takes_as_long_anyway_counts_for_both():
    rows = [row("iakd+kd", seconds=0.9), row("kd")]
    (added,) = by_counterpart(swap_effects(rows))
    assert (added.counterpart, added.conditions) == ("kd", ["equal_epochs", "equal_time"])
    assert not added.untuned


def test_row_that_is_too_short_tells_how_many_epochs_it_needs():
    rows = [row(**SWAPPING), row("kd"), longer("kd-130", 130, method="kd")]
    found = effect(rows, "equal_time")
    assert (found.counterpart, found.difference, found.nearest) == (None, None, "kd-130")
    assert (found.epochs, found.time_ratio) == (143, pytest.approx(130 / 140))  # 140, and 2 % to spare
    enough = effect([*rows, longer("more", found.epochs, method="kd")], "equal_time")
    assert enough.counterpart == "more" and enough.time_ratio > 1


def test_longer_row_of_other_settings_is_refused():
    rows = [row(**SWAPPING), row("kd"), longer("kd-140", 140, method="kd", init="teacher")]
    found = effect(rows, "equal_time")
    assert (found.counterpart, found.nearest) == (None, "kd")


def test_times_of_different_devices_are_not_compared():
    rows = [row(**SWAPPING), row("kd", device="cuda"), longer("kd-200", 200, method="kd", device="cuda")]
    assert (effect(rows).counterpart, effect(rows).time_ratio) == ("kd", None)
    found = effect(rows, "equal_time")
    assert (found.counterpart, found.differs_in, found.epochs) == (None, ("device",), None)


# Tuned methods

TUNED = {"method": "iakd", "iakd": {"schedule": "tuned"}}


class TunedMethod(Method):
    """A method some of whose settings come from a study, whichever they are."""

    @property
    def tuned(self) -> bool:
        return True


def tuned(label: str, *arguments: Any, **settings: Any) -> Row:
    found = row(label, *arguments, **settings)
    found.method = TunedMethod.model_validate(found.method.model_dump(exclude_unset=True))
    return found


def test_tuned_method_is_compared_with_the_untuned_loss_and_misses_a_tuned_one():
    found = swap_effects([row("iakd-tuned", **TUNED), row("scratch", seconds=0.5)])
    assert [(e.condition, e.counterpart) for e in found] == [
        ("equal_epochs", "scratch"),
        ("equal_time", None),
        ("tuned_equal_epochs", None),
        ("tuned_equal_time", None),
    ]
    (added,) = by_counterpart(found)
    assert added.untuned and added.reference == "scratch (not tuned)"


def test_tuned_method_and_tuned_counterpart():
    rows = [
        tuned("iakd-tuned", (93.0, 94.0, 95.0), 1.4, method="iakd+kd"),
        row("kd"),
        tuned("kd-tuned", (91.0, 92.0, 93.0), method="kd"),
        tuned("kd-tuned-longer", (91.5, 92.5, 93.5), method="kd", recipe={"epochs": 150}),
        longer("kd-longer", 150, method="kd"),
    ]
    found = [(a.counterpart, a.conditions, a.untuned, a.difference.mean) for a in by_counterpart(swap_effects(rows))]
    assert found == [
        ("kd", ["equal_epochs"], True, 3.0),
        ("kd-longer", ["equal_time"], True, 3.0),
        ("kd-tuned", ["tuned_equal_epochs"], False, 2.0),
        ("kd-tuned-longer", ["tuned_equal_time"], False, 1.5),
    ]


def test_tuned_row_is_no_counterpart_of_a_method_that_is_not():
    found = effect([row("iakd+kd"), tuned("kd-tuned", method="kd")])
    assert (found.counterpart, found.nearest) == (None, None)


# Seeds


def test_no_common_seed_gives_no_difference():
    found = effect([row("iakd", {0: 91.0}), row("scratch", {1: 92.0})])
    assert (found.counterpart, found.difference) == ("scratch", None)
    assert by_counterpart([found]) == []

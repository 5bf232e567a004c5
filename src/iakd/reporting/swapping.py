"""What swapping itself added: each method with swaps beside the same loss without, at equal epochs and equal time.

The counterpart of a method is found in the settings: the same sum without `iakd` or `rcn` (alone: `scratch`), with the
same options, initialisation and recipe. At equal training time it is one that differs in nothing but its epochs and
took at least as long. A method whose schedule or settings a study chose is compared with the untuned counterpart, and
with one that was tuned too: all studies of an experiment have the same budget.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from iakd.config import METHODS, Method, Recipe
from iakd.reporting.statistics import PairedDifference

INTERACTIVE, ALONE = "interactive", "scratch"  # the group of methods that swap, and the method that adds no loss
EQUAL_TIME = 0.97  # of the time of the method with swaps: times on a shared machine differ by more than that
SPARE = 1.02  # suggested epochs take a little longer than needed

Condition = Literal["equal_epochs", "equal_time", "tuned_equal_epochs", "tuned_equal_time"]


class Trained(Protocol):
    """A method of one pair, trained with several seeds: `MethodResults`."""

    @property
    def label(self) -> str:
        """Its label in the settings."""

    @property
    def method(self) -> Method | None:
        """Its settings for this pair."""

    @property
    def recipe(self) -> Recipe | None:
        """Its recipe for this pair."""

    @property
    def epoch_seconds(self) -> Sequence[float]:
        """The time of each epoch, without validation."""

    @property
    def devices(self) -> frozenset[str]:
        """What it was trained on."""


Compare = Callable[[Trained, Trained], PairedDifference | None]  # the first minus the second


@dataclass(frozen=True)
class SwapEffect:
    """A method with swaps minus its counterpart without, or why there is no such comparison.

    `difference` is in points of test accuracy; None if the two share no seed. `time_ratio` is the counterpart's
    training time divided by the method's; None if they were trained on different devices.
    """

    method: str
    condition: Condition
    counterpart: str | None
    difference: PairedDifference | None = None
    time_ratio: float | None = None
    nearest: str | None = None  # without a counterpart: the row that comes closest to one
    differs_in: tuple[str, ...] = ()  # what keeps it from being one; empty: only its training time
    epochs: int | None = None  # that `nearest` would need for an equal training time


def training_seconds(results: Trained) -> float:
    """Return the training time of one seed: the sum over the epochs."""
    return sum(results.epoch_seconds)


def swap_effects(methods: Sequence[Trained], compare: Compare) -> list[SwapEffect]:
    """Return the effects of swapping in all methods of a pair that swap, in their order."""
    return [
        effect
        for results in methods
        if results.method and interactive(results.method)
        for effect in _Counterparts(results, methods, compare).effects()
    ]


class Added(NamedTuple):
    """What swapping added over one counterpart, and under which conditions this is a fair comparison."""

    method: str
    counterpart: str
    difference: PairedDifference
    time_ratio: float | None
    conditions: list[Condition]
    untuned: bool  # the method was tuned, its counterpart was not

    @property
    def reference(self) -> str:
        """The counterpart's label, as shown to readers."""
        return f"{self.counterpart} (not tuned)" if self.untuned else self.counterpart


def by_counterpart(effects: Sequence[SwapEffect]) -> list[Added]:
    """Return the effects that have a difference, those over the same counterpart as one."""
    found: dict[tuple[str, str], Added] = {}
    tuned = {effect.method for effect in effects if effect.condition.startswith("tuned")}
    for effect in effects:
        if effect.counterpart and effect.difference:
            untuned = effect.method in tuned and not effect.condition.startswith("tuned")
            added = Added(effect.method, effect.counterpart, effect.difference, effect.time_ratio, [], untuned)
            found.setdefault((effect.method, effect.counterpart), added).conditions.append(effect.condition)
    return list(found.values())


class _Counterparts:
    """The rows without swaps that a method with swaps may be compared with."""

    def __init__(self, swapping: Trained, methods: Sequence[Trained], compare: Compare) -> None:
        self.swapping, self.compare = swapping, compare
        self.own = _conditions(swapping)
        self.others = [other for other in methods if other.method and other.method.group != INTERACTIVE]

    def effects(self) -> Iterator[SwapEffect]:
        assert self.swapping.method
        yield self._effect("equal_epochs", tuned=False)
        yield self._effect("equal_time", tuned=False)
        if self.swapping.method.tuned:
            yield self._effect("tuned_equal_epochs", tuned=True)
            yield self._effect("tuned_equal_time", tuned=True)

    def _effect(self, condition: Condition, tuned: bool) -> SwapEffect:
        alike = [other for other in self._kind(tuned) if not self._differences(other)]
        if condition.endswith("equal_epochs"):
            found = next((other for other in alike if _epochs(other) == _epochs(self.swapping)), None)
        else:
            timed = [other for other in alike if (self._time_ratio(other) or 0.0) >= EQUAL_TIME]
            found = min(timed, key=training_seconds, default=None)
        if found:
            difference = self.compare(self.swapping, found)
            return SwapEffect(self.swapping.label, condition, found.label, difference, self._time_ratio(found))
        return self._missing(condition, alike, tuned)

    def _missing(self, condition: Condition, alike: list[Trained], tuned: bool) -> SwapEffect:
        if alike and condition.endswith("equal_time"):
            longest = max(alike, key=training_seconds)
            ratio = self._time_ratio(longest)
            if ratio is None:
                return SwapEffect(self.swapping.label, condition, None, nearest=longest.label, differs_in=("device",))
            epochs = int(SPARE * _epochs(longest) / ratio) + 1
            return SwapEffect(
                self.swapping.label, condition, None, time_ratio=ratio, nearest=longest.label, epochs=epochs
            )
        if alike:
            return SwapEffect(self.swapping.label, condition, None, nearest=alike[0].label, differs_in=("epochs",))
        same_loss = [other for other in self._kind(tuned) if _conditions(other)["method"] == self.own["method"]]
        nearest = min(same_loss, key=lambda other: len(self._differences(other)), default=None)
        differs = tuple(self._differences(nearest)) if nearest else ()
        label = nearest.label if nearest else None
        return SwapEffect(self.swapping.label, condition, None, nearest=label, differs_in=differs)

    def _kind(self, tuned: bool) -> list[Trained]:
        return [other for other in self.others if other.method and other.method.tuned == tuned]

    def _differences(self, other: Trained) -> list[str]:
        """Return the names of the settings, apart from the epochs, in which `other` differs."""
        theirs = _conditions(other)
        return sorted(name for name in self.own | theirs if self.own.get(name) != theirs.get(name))

    def _time_ratio(self, other: Trained) -> float | None:
        if other.devices != self.swapping.devices:
            return None
        return training_seconds(other) / max(training_seconds(self.swapping), 1e-9)


def _epochs(results: Trained) -> int:
    return len(results.epoch_seconds)


def _conditions(results: Trained) -> dict[str, Any]:
    """Return by name, as in params.yaml, all settings that a counterpart has in common with `results`."""
    assert results.method and results.recipe
    sections = results.method.settings()
    for name in ("method", *(name for name in METHODS if METHODS[name].group == INTERACTIVE)):
        sections.pop(name, None)
    if "init" in sections.pop("tune", {}):  # whatever the study chose
        sections["init"] = "searched"
    sections["recipe"] = results.recipe.model_dump(mode="json", exclude={"epochs", "validate_every"})
    return {"method": without_swaps(results.method), **dict(_flat(sections))}


def interactive(method: Method) -> bool:
    """Whether a term of the sum, iakd or rcn, swaps parts of the teacher into the student, and with any effect."""
    return method.group == INTERACTIVE and not (method.swaps and method.iakd.without_effect)


def without_swaps(method: Method) -> str:
    """Return the sum without what swaps, its terms in alphabetical order."""
    return "+".join(sorted(name for name in method.names if METHODS[name].group != INTERACTIVE)) or ALONE


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

"""What the study of one method searches: its settings one by one, and the method and recipe that each trial tries."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from iakd.config.base import did_you_mean, explain, merged, plain, section_of, types_of
from iakd.config.method_options import CONTIGUOUS
from iakd.config.methods import METHODS, Method
from iakd.config.schedule import PAPER_KINDS, Schedule, settings_used
from iakd.config.training import Recipe
from iakd.config.tuning import Candidates, Space, Tune, stored

SCHEDULE = "iakd.schedule"
KIND, SLOPE = f"{SCHEDULE}.kind", f"{SCHEDULE}.slope"
PATHS = "iakd.paths"
RECIPE = "recipe."
LR_SCHEDULE = "recipe.lr_schedule"  # decides whether `review` needs cycles
FIXED = {  # settings of a recipe that are the same for all trials
    "recipe.epochs": "every trial trains equally long; tune.recipe may set other epochs for all trials",
    "recipe.validate_every": "trials are compared at the same epochs",
}

Params = dict[str, Any]  # of a trial, as Optuna stores them: setting → value


class Candidate(NamedTuple):
    """A method, and the recipe of its students; those of a trial have nothing left to search."""

    method: Method
    recipe: Recipe

    def value(self, name: str) -> Any:
        """Return the value of a setting by its dotted name; None in a section that is not set."""
        section, *rest = name.split(".")
        node: Any = self.recipe if section == "recipe" else getattr(self.method, section)
        for part in rest:
            node = getattr(node, part) if isinstance(node, BaseModel) else None
        return plain(node) if isinstance(node, BaseModel) else node


@dataclass(frozen=True)
class Parameter:
    """One setting that a study searches, by its dotted name in the method's entry."""

    name: str
    values: Candidates
    integer: bool = False

    @cached_property
    def choices(self) -> dict[bool | int | float | str, Any]:
        """The choices by what Optuna stores; empty for a range."""
        return {stored(value): value for value in self.values.choices or []}

    @property
    def of_schedule(self) -> bool:
        """Whether it is a setting that only some kinds of schedule use."""
        return self.name.startswith(f"{SCHEDULE}.") and self.name != KIND

    @property
    def corners(self) -> list[Any]:
        """The choices, or both ends of the range, as Optuna stores them."""
        return list(self.choices) or list(dict.fromkeys([self.values.low, self.values.high]))

    def contains(self, value: Any) -> bool:
        """Whether a study can try this value, given as Optuna stores it."""
        if self.choices:
            return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high, step = self.values.low, self.values.high, self.values.step
        assert low is not None and high is not None
        on_grid = step is None or math.isclose((value - low) / step, round((value - low) / step), abs_tol=1e-9)
        return low <= value <= high and on_grid


class SearchSpace:
    """The settings that the study of `method` searches, in the order in which they are drawn.

    `recipe` is that of its trials. Raises ValueError for what cannot be searched.
    """

    def __init__(self, method: Method, recipe: Recipe, tune: Tune) -> None:
        self.method = method
        self.recipe = recipe
        self._tune_recipe = tune.recipe
        searched = dict(method.tune)
        if method.tunes_schedule:
            for name in searched:
                if f"{name}.".startswith(f"{SCHEDULE}."):
                    raise ValueError(f"tune.{name}: {SCHEDULE} is tuned, so tune.space has its search space")
            searched = {f"{SCHEDULE}.{name}": values for name, values in _schedule_space(tune.space).items()} | searched
        for name, other in permutations(searched, 2):
            if other.startswith(f"{name}."):
                raise ValueError(f"tune.{other}: a part of {name}, which is searched as a whole")
        found = {name: self._parameter(name, values, tune) for name, values in searched.items()}
        self._by_name = found
        unused = [one.name for one in found.values() if one.of_schedule and not self._kinds(one)]
        for name in unused:
            if not self._in_space(name):
                raise ValueError(f"tune.{name}: the schedule does not use it")
            del found[name]
        self.parameters = list(_in_order(found))
        for parameter in self.parameters:
            self._check_conditions(parameter)

    def _parameter(self, name: str, values: Candidates, tune: Tune) -> Parameter:
        annotation = self._annotation(name)
        if name in FIXED:
            raise ValueError(f"tune.{name}: cannot be searched: {FIXED[name]}")
        section, _, rest = name.partition(".")
        if section == "recipe" and _sets(tune.recipe, rest):
            raise ValueError(f"tune.{name}: the section tune.recipe sets it for all trials")
        if values.choices is not None:
            return Parameter(name, values)
        number = _number(annotation)
        if number is None:
            raise ValueError(f"tune.{name}: not a number: list its choices")
        parts = {part: getattr(values, part) for part in ("low", "high", "step")}
        for part, value in parts.items():
            if number is int and value is not None and value != int(value):
                raise ValueError(f"tune.{name}: {part} must be a whole number, got {value:g}")
        parts = {part: value if value is None else number(value) for part, value in parts.items()}
        parameter = Parameter(name, values.model_copy(update=parts), number is int)
        if not parameter.contains(parts["high"]):
            raise ValueError(f"tune.{name}: high must be low plus a multiple of step")
        return parameter

    def _annotation(self, name: str) -> Any:
        """The type of a setting. Raises ValueError where the method has no such setting."""
        section, *rest = name.split(".")
        known = ["init", "recipe", *(one for one in self.method.names if METHODS[one].options)]
        if section in METHODS and section not in known:
            about = "has no options" if section in self.method.names else f"is not in {self.method.method!r}"
            raise ValueError(f"tune.{name}: {section} {about}")
        if section not in known:
            near = did_you_mean(section, known)
            raise ValueError(f"tune.{name}: cannot be searched{near}; what can: {', '.join(known)}")
        node: Any = Recipe if section == "recipe" else Method.model_fields[section].annotation
        for position, part in enumerate(rest):
            model = section_of(node)
            if model is None:
                raise ValueError(f"tune.{name}: {'.'.join([section, *rest[:position]])} is not a section")
            if part not in model.model_fields:
                raise ValueError(f"tune.{name}: unknown setting {part!r}{did_you_mean(part, model.model_fields)}")
            node = model.model_fields[part].annotation
        if not rest and section_of(node):
            raise ValueError(f"tune.{name}: a whole section: name one of its settings")
        return node

    def _check_conditions(self, parameter: Parameter) -> None:
        for name, wanted in parameter.values.when.items():
            self._annotation(name)
            other = self._by_name.get(name)
            for value in _listed(wanted):
                if other and not other.contains(stored(value)):
                    raise ValueError(f"tune.{parameter.name}: when: {name} is never {value!r}")
            if not other and stored(self.own(name)) not in map(stored, _listed(wanted)):
                raise ValueError(f"tune.{parameter.name}: when: never true, because {name} is {self.own(name)!r}")

    def own(self, name: str) -> Any:
        """Return the value of a setting in the method as it stands; None in a section that is not set."""
        return Candidate(self.method, self.recipe).value(name)

    def is_used(self, parameter: Parameter, params: Mapping[str, Any]) -> bool:
        """Whether a trial with `params`, which are drawn before this parameter, uses it, too."""
        for name, wanted in parameter.values.when.items():
            value = params[name] if name in params else stored(self.own(name))
            if value not in map(stored, _listed(wanted)):
                return False
        if not parameter.of_schedule:
            return True
        if parameter.name == SLOPE and self._values(params).get(PATHS, self.own(PATHS)) in CONTIGUOUS:
            return False
        kind = params.get(KIND, self.own(KIND))
        return kind is not None and parameter.name in _schedule_settings(kind, self._lr_drops(params))

    def _lr_drops(self, params: Mapping[str, Any]) -> bool:
        """Whether the learning rate drops at milestones."""
        recipe = self._recipe(params) if any(name.startswith(LR_SCHEDULE) for name in params) else self.recipe
        return recipe.lr_schedule.kind == "multistep" and bool(recipe.lr_schedule.milestones)

    def _kinds(self, parameter: Parameter) -> list[str]:
        """The kinds of schedule that a study tries and that use this setting of a schedule."""
        kinds = self._by_name[KIND].choices.values() if KIND in self._by_name else [self.own(KIND)]
        drops = [False, True] if any(name.startswith(LR_SCHEDULE) for name in self._by_name) else [self._lr_drops({})]
        return [kind for kind in kinds if any(parameter.name in _schedule_settings(kind, one) for one in drops)]

    def candidate(self, params: Mapping[str, Any]) -> Candidate:
        """Return what a trial with these parameters trains.

        Raises ValidationError where these settings contradict each other.
        """
        return Candidate(Method.model_validate(self.entry(params)), self._recipe(params))

    def entry(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the method with these parameters as an entry of `methods`."""
        given = self.method.model_dump(mode="json", exclude_unset=True, exclude={"tune"})
        return _with(given, self._values(params))

    def _recipe(self, params: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a trial, which is as if the entry were in the settings and `tune.recipe` applied."""
        changed = merged(plain(self.recipe), self.entry(params).get("recipe", {}))
        return Recipe.model_validate(merged(changed, self._tune_recipe))

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters with choices as they are in the settings, not as Optuna stores them."""
        choices = {name: self._by_name[name].choices for name in params}
        return {name: choices[name][value] if choices[name] else value for name, value in params.items()}

    def params_of(self, values: Mapping[str, Any]) -> tuple[Params, list[str]]:
        """Return the parameters of a trial with `values` and else the method's own, and what the space excludes."""
        params: Params = {}
        excluded: list[str] = []
        for parameter in self.parameters:
            if self.is_used(parameter, params):
                value = values.get(parameter.name, self.own(parameter.name))
                label = self._label(parameter, value)
                if label is None:
                    excluded.append(parameter.name)
                else:
                    params[parameter.name] = label
        return params, excluded

    def _label(self, parameter: Parameter, value: Any) -> bool | int | float | str | None:
        """A value as Optuna stores it, None where the space excludes it."""
        if parameter.choices:
            return next((label for label, one in parameter.choices.items() if self._same(parameter, one, value)), None)
        return (value if parameter.integer else float(value)) if parameter.contains(value) else None

    def _same(self, parameter: Parameter, choice: Any, value: Any) -> bool:
        """Whether a choice is the same as a value; a section may leave out what has its default."""
        if not isinstance(choice, dict | list):
            return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)
        try:
            one, other = (self._changed(parameter.name, either) for either in (choice, value))
        except ValidationError:
            return False
        return one == other

    def _changed(self, name: str, value: Any) -> BaseModel:
        """The method or its recipe with one other value."""
        entry = _with(self.entry({}), {name: value})
        if name.startswith(RECIPE):
            return Recipe.model_validate(merged(plain(self.recipe), entry["recipe"]))
        return Method.model_validate(entry)

    def check(self) -> None:
        """Raise ValueError where a trial could have settings that are not allowed.

        Checked are the method's own values, which the study tries first, each choice, both ends of each range, and all
        pairs of these.
        """
        corners = [(parameter.name, corner) for parameter in self.parameters for corner in parameter.corners]
        for corner in corners:
            self._check_corner(dict([corner]))
        self._check_own()
        for one, other in combinations(corners, 2):
            if one[0] != other[0] and not (self._in_space(one[0]) and self._in_space(other[0])):
                self._check_corner(dict([one, other]))
        if all(len(parameter.corners) == 1 for parameter in self.parameters):
            where = "space" if self.method.tunes_schedule else ", ".join(self.method.tune)
            raise ValueError(f"tune: nothing to search, each setting has a single value; give tune.{where} several")

    def _in_space(self, name: str) -> bool:
        """Whether a setting is searched as `tune.space` says, which was checked when it was read."""
        return self.method.tunes_schedule and name.startswith(f"{SCHEDULE}.")

    def _check_own(self) -> None:
        known: Params = {}
        for parameter in self.parameters:
            if self._in_space(parameter.name):
                continue
            label = self._label(parameter, self.own(parameter.name))
            if label is not None:
                known[parameter.name] = label
            elif any(map(self._in_space, parameter.values.when)) or self.is_used(parameter, known):
                widen = "add it to the choices" if parameter.choices else "widen the range"
                raise ValueError(
                    f"tune.{parameter.name}: must include {self.own(parameter.name)!r}, the method's own value, "
                    f"with which its study starts; {widen}, or set {parameter.name} itself to a value that is included"
                )

    def _check_corner(self, chosen: Params) -> None:
        """Check one candidate: `chosen`, what makes these settings used, and else the method's own values."""
        needed = self._needed(chosen)
        params: Params = {}
        for parameter in self.parameters:
            if self.is_used(parameter, params):
                own = self._label(parameter, self.own(parameter.name))
                params[parameter.name] = needed.get(parameter.name, parameter.corners[0] if own is None else own)
        if any(params.get(name) != value for name, value in chosen.items()):
            return  # no trial has both
        try:
            self.candidate(params)
        except ValidationError as error:
            settings = ", ".join(f"{name}: {value}" for name, value in chosen.items())
            reason = explain(error, Recipe if error.title == Recipe.__name__ else Method)
            raise ValueError(
                f"tune.{next(iter(chosen))}: a trial with {settings} is impossible ({reason}); `when` can prevent it"
            ) from None

    def _needed(self, chosen: Params) -> Params:
        """Return `chosen` and values of other settings with which these are used."""
        needed = dict(chosen)
        for name in chosen:
            parameter = self._by_name[name]
            for other, wanted in parameter.values.when.items():
                if other in self._by_name and other not in needed:
                    needed = self._needed({other: stored(_listed(wanted)[0])}) | needed
            if parameter.of_schedule and KIND in self._by_name and KIND not in needed:
                needed[KIND] = self._kinds(parameter)[0]
        return needed


def _schedule_space(space: Space) -> dict[str, Candidates]:
    """The search space of a schedule's settings, in the order of `settings_used`."""
    found = {"kind": Candidates(choices=list(dict.fromkeys(space.kind)))}
    for name in dict.fromkeys([*settings_used(PAPER_KINDS[0], lr_drops=False), *Space.model_fields]):
        if name not in found:
            low, high = getattr(space, name)
            found[name] = Candidates(low=low, high=high)
    return found


def _schedule_settings(kind: str, drops: bool) -> set[str]:
    return {f"{SCHEDULE}.{name}" for name in settings_used(kind, drops)}


def _in_order(found: dict[str, Parameter]) -> Iterator[Parameter]:
    """Yield parameters as given, but each after those that decide whether it is used."""
    waiting = dict(found)
    while waiting:
        ready = next((one for one in waiting.values() if not waiting.keys() & _decides(one, found)), None)
        if ready is None:
            raise ValueError(f"tune.{next(iter(waiting))}: when: settings wait for each other")
        yield waiting.pop(ready.name)


def _decides(parameter: Parameter, names: Iterable[str]) -> set[str]:
    """What decides whether a parameter is used."""
    if not parameter.of_schedule:
        return set(parameter.values.when)
    return {*parameter.values.when, KIND, PATHS, *(name for name in names if name.startswith(LR_SCHEDULE))}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _with(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with values set at dotted names; sections that are missing are created."""
    result = copy.deepcopy(base)
    for name, value in values.items():
        node = result
        *sections, last = name.split(".")
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        node[last] = value
    return result


def _sets(section: Any, name: str) -> bool:
    """Whether nested settings set this one, a part of it, or what it is a part of."""
    for part in name.split("."):
        if not isinstance(section, dict):
            return True
        if part not in section:
            return False
        section = section[part]
    return True


def _number(annotation: Any) -> type[int] | type[float] | None:
    return next((one for one in (float, int) if one in types_of(annotation)), None)


def first_schedules(methods: list[Method]) -> list[Schedule]:
    """Return the paper's three kinds, as in the methods or else with their defaults, and all other kinds in methods.

    So, on validation, the best trial of a study is never worse than a schedule in the settings.
    """
    named = [method.iakd.schedule for method in methods if method.swaps]
    given = [schedule for schedule in named if isinstance(schedule, Schedule)]
    result: list[Schedule] = []
    for kind in PAPER_KINDS:
        result += [schedule for schedule in given if schedule.kind == kind] or [Schedule.model_validate({"kind": kind})]
    result += [schedule for schedule in given if schedule.kind not in PAPER_KINDS]
    return [schedule for position, schedule in enumerate(result) if schedule not in result[:position]]

"""The search space of a study: which settings are searched for which kind of schedule, and between what."""

from typing import TYPE_CHECKING, Any

from iakd.config import Recipe, Schedule, Space
from iakd.config.schedule import settings_used

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

COUNTS = ("cycles", "steps")


def used(kind: str, recipe: Recipe) -> tuple[str, ...]:
    """The settings that a schedule of this kind depends on, in the order in which they are drawn."""
    drops = recipe.lr_schedule.kind == "multistep" and bool(recipe.lr_schedule.milestones)
    return settings_used(kind, drops)


def parameters(schedule: Schedule, recipe: Recipe) -> dict[str, Any]:
    """A schedule as the parameters of a trial: its kind and what that kind uses."""
    return {"kind": schedule.kind, **{name: getattr(schedule, name) for name in used(schedule.kind, recipe)}}


def contains(space: Space, values: dict[str, Any]) -> bool:
    """Whether a trial with these parameters lies in the space."""
    return all(
        value in space.kind if name == "kind" else getattr(space, name)[0] <= value <= getattr(space, name)[1]
        for name, value in values.items()
    )


def first_trials(first: list[Schedule], space: Space, recipe: Recipe) -> tuple[list[dict[str, Any]], list[Schedule]]:
    """Parameters of the trials that a study begins with, each once; and the schedules outside its space."""
    chosen: list[dict[str, Any]] = []
    excluded: list[Schedule] = []
    for schedule in first:
        values = parameters(schedule, recipe)
        if not contains(space, values):
            excluded.append(schedule)
        elif values not in chosen:
            chosen.append(values)
    return chosen, excluded


def distributions(space: Space, kind: str, recipe: Recipe) -> dict[str, "BaseDistribution"]:
    """What each parameter of a trial of this kind is drawn from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, BaseDistribution] = {"kind": CategoricalDistribution(list(dict.fromkeys(space.kind)))}
    for name in used(kind, recipe):
        low, high = getattr(space, name)
        result[name] = IntDistribution(low, high) if name in COUNTS else FloatDistribution(low, high)
    return result


def suggest(trial: "Trial", space: Space, recipe: Recipe) -> dict[str, Any]:
    """Draw the kind, then what it uses and nothing else."""
    values: dict[str, Any] = {"kind": trial.suggest_categorical("kind", list(dict.fromkeys(space.kind)))}
    for name in used(values["kind"], recipe):
        low, high = getattr(space, name)
        values[name] = trial.suggest_int(name, low, high) if name in COUNTS else trial.suggest_float(name, low, high)
    return values

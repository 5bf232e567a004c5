"""What a study tries and which trials it prunes: pure functions of its settings and of earlier generations.

Trials of one generation run in parallel, so the stored study changes in an order that depends on timing. Each decision
is therefore made in a private in-memory study, the view of a trial: all trials of earlier generations with their
results, and the trials before it in its own generation as still running. Timing and the number of workers do not
change a view.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from iakd.config import Pruner, Recipe, Schedule, Space, Tune
from iakd.config.schedule import settings_used
from iakd.seeding import derive
from iakd.tuning.results import INTEGER_PARAMS, TrialRecord

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class Search:
    """Everything that a study's decisions depend on, except its trials."""

    tune: Tune
    recipe: Recipe
    first: list[Schedule]

    def generation_start(self, number: int) -> int:
        """Return the number of the first trial in the generation of trial `number`."""
        return number - number % self.tune.generation


def propose(search: Search, trials: Sequence[TrialRecord], number: int) -> tuple[dict[str, Any], str]:
    """Return parameters and origin of trial `number`; `trials` holds at least all trials before it."""
    first, _ = first_trials(search.first, search.tune.space, search.recipe)
    if number < len(first):
        return first[number], "first"
    view = _view(search, trials, number, _sampler(search.tune, number), NopPruner())
    return suggest(view.ask(), search.tune.space, search.recipe), "sampler"


class TrialPruner:
    """Decides whether to prune one trial, given what earlier generations reached at the same epoch."""

    def __init__(self, search: Search, trials: Sequence[TrialRecord], number: int) -> None:
        self._number = number
        self._epochs = search.recipe.epochs
        # schedules from the settings always finish, so the best trial is never worse than them
        self._may_prune = trials[number].origin != "first"
        self._view = _view(search, trials, number, RandomSampler(seed=0), _pruner(search.tune.pruner, search.recipe))
        self._trial = self._view.ask()

    def should_prune(self, epoch: int, value: float) -> bool:
        """Report the validation accuracy (percent) after `epoch` (1-based); return whether to stop the trial there."""
        self._trial.report(value, step=epoch)
        should = self._trial.should_prune()
        return should and self._may_prune and epoch < self._epochs

    @property
    def state(self) -> dict[str, Any]:
        """What the pruner stored with this trial, for decisions on later trials."""
        return dict(self._view.trials[self._number].system_attrs)


def _view(
    search: Search, trials: Sequence[TrialRecord], number: int, sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    # Hyperband hashes the name to choose a trial's bracket
    view = optuna.create_study(study_name="view", direction="maximize", sampler=sampler, pruner=pruner)
    start = search.generation_start(number)
    for trial in trials[:number]:
        view.add_trial(_frozen(search, trial, known=trial.number < start))
    return view


def _frozen(search: Search, trial: TrialRecord, known: bool) -> FrozenTrial:
    if known and not trial.finished:
        raise AssertionError(f"trial {trial.number} of an earlier generation is {trial.state}")
    space = distributions(search.tune.space, trial.params["kind"], search.recipe)
    if not known:
        return create_trial(state=TrialState.RUNNING, params=trial.params, distributions=space)
    return create_trial(
        state=STATES[trial.state],
        value=trial.value if trial.state == "complete" else None,
        params=trial.params,
        distributions=space,
        intermediate_values=trial.intermediate_values,
        system_attrs=trial.pruner_state,
    )


def _sampler(tune: Tune, number: int) -> BaseSampler:
    seed = derive("sampler", tune.seed, number) % 2**32
    if tune.sampler.kind == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` is experimental
        return TPESampler(
            n_startup_trials=tune.sampler.startup,
            n_ei_candidates=tune.sampler.candidates,
            seed=seed,
            multivariate=tune.sampler.multivariate,
            group=tune.sampler.multivariate,  # models conditional parameters jointly, too
            constant_liar=True,  # avoids the parameters of trials that are still running
        )


def _pruner(pruner: Pruner, recipe: Recipe) -> BasePruner:
    match pruner.kind:
        case "median":
            return MedianPruner(
                n_startup_trials=pruner.startup,
                n_warmup_steps=round(pruner.warmup * recipe.epochs),
                interval_steps=1,
                n_min_trials=1,
            )
        case "hyperband":
            return HyperbandPruner(
                min_resource=min(recipe.validate_every, recipe.epochs),
                max_resource=recipe.epochs,
                reduction_factor=pruner.reduction,
                bootstrap_count=0,
            )
        case _:
            return NopPruner()


def params_used(kind: str, recipe: Recipe) -> tuple[str, ...]:
    """Return the parameters that a schedule of this kind depends on, besides `kind`, in the order they are sampled."""
    drops = recipe.lr_schedule.kind == "multistep" and bool(recipe.lr_schedule.milestones)
    return settings_used(kind, drops)


def params_of(schedule: Schedule, recipe: Recipe) -> dict[str, Any]:
    """Return a schedule as the parameters of a trial: its kind and the settings that the kind uses."""
    return {"kind": schedule.kind, **{name: getattr(schedule, name) for name in params_used(schedule.kind, recipe)}}


def _contains(space: Space, params: dict[str, Any]) -> bool:
    return all(
        value in space.kind if name == "kind" else getattr(space, name)[0] <= value <= getattr(space, name)[1]
        for name, value in params.items()
    )


def first_trials(first: list[Schedule], space: Space, recipe: Recipe) -> tuple[list[dict[str, Any]], list[Schedule]]:
    """Return the parameters of a study's first trials, without duplicates, and the schedules outside its space."""
    chosen: list[dict[str, Any]] = []
    excluded: list[Schedule] = []
    for schedule in first:
        params = params_of(schedule, recipe)
        if not _contains(space, params):
            excluded.append(schedule)
        elif params not in chosen:
            chosen.append(params)
    return chosen, excluded


def distributions(space: Space, kind: str, recipe: Recipe) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter of a trial with this kind of schedule."""
    result: dict[str, BaseDistribution] = {"kind": CategoricalDistribution(list(dict.fromkeys(space.kind)))}
    for name in params_used(kind, recipe):
        low, high = getattr(space, name)
        result[name] = IntDistribution(low, high) if name in INTEGER_PARAMS else FloatDistribution(low, high)
    return result


def suggest(trial: Trial, space: Space, recipe: Recipe) -> dict[str, Any]:
    """Sample the kind, then only the parameters that it uses."""
    params: dict[str, Any] = {"kind": trial.suggest_categorical("kind", list(dict.fromkeys(space.kind)))}
    for name in params_used(params["kind"], recipe):
        low, high = getattr(space, name)
        integer = name in INTEGER_PARAMS
        params[name] = trial.suggest_int(name, low, high) if integer else trial.suggest_float(name, low, high)
    return params

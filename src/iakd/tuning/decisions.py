"""What a study tries and which trials it prunes: pure functions of its settings and of earlier generations.

Trials of one generation run in parallel, so the stored study changes in an order that depends on timing. Each decision
is therefore made in a private in-memory study, the view of a trial: all trials of earlier generations with their
results, and the trials before it in its own generation as still running. Timing and the number of workers do not
change a view.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from iakd.config import Parameter, Pruner, Recipe, SearchSpace, Tune
from iakd.seeding import derive
from iakd.tuning.results import TrialRecord, seeds_of

Direction = Literal["minimize", "maximize"]
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class Search:
    """Everything that a study's decisions depend on, except its trials."""

    tune: Tune
    space: SearchSpace
    first: list[dict[str, Any]]  # parameters of the first trials

    @property
    def epochs(self) -> int:
        """Epochs of each seed of a trial."""
        return self.space.recipe.epochs

    @property
    def directions(self) -> list[Direction]:
        """Of the objectives: accuracy, and multiply–accumulates if they are one."""
        return ["maximize", "minimize"] if self.tune.several_objectives else ["maximize"]

    def generation_start(self, number: int) -> int:
        """Return the number of the first trial in the generation of trial `number`."""
        return number - number % self.tune.generation


def propose(search: Search, trials: Sequence[TrialRecord], number: int) -> tuple[dict[str, Any], str]:
    """Return parameters and origin of trial `number`; `trials` holds at least all trials before it."""
    if number < len(search.first):
        return search.first[number], "first"
    view = _view(search, trials, number, _sampler(search.tune, number), NopPruner())
    return suggest(view.ask(), search.space), "sampler"


class TrialPruner:
    """Decides whether to prune one trial, given what earlier generations reached.

    While its first seed trains, and after it, the trial is compared by `Pruner.kind` with their first seeds after the
    same epoch. After each further seed, but for the last one, `Pruner.wilcoxon` compares its seeds with the same seeds
    of the best trial: all trials have the same seeds, hence the same initial weights and batches.
    """

    def __init__(self, search: Search, trials: Sequence[TrialRecord], number: int) -> None:
        self._search = search
        self._number = number
        # what is in the settings always finishes, so the best trial is never worse than that
        self._may_prune = trials[number].origin != "first"
        pruner = search.tune.pruner
        over_epochs = [_first_seed(search, trial) for trial in trials[:number]]
        over_seeds = [_by_seed(search, trial) for trial in trials[:number]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            test = WilcoxonPruner(p_threshold=pruner.wilcoxon) if pruner.wilcoxon is not None else NopPruner()
        self._epochs = _view(search, over_epochs, number, RandomSampler(seed=0), _pruner(pruner, search.space.recipe))
        self._seeds = _view(search, over_seeds, number, RandomSampler(seed=0), test)
        self._trial, self._by_seed = self._epochs.ask(), self._seeds.ask()

    def should_prune(self, step: int, value: float) -> bool:
        """Report the validation accuracy (percent) at a step (`step_of`); return whether to stop the trial there."""
        if self._search.tune.several_objectives:
            return False
        seed, epoch = divmod(step - 1, self._search.epochs)
        ended = epoch + 1 == self._search.epochs
        should = False
        if seed == 0:
            self._trial.report(value, step=epoch + 1)
            should = self._trial.should_prune()
        if ended:
            self._by_seed.report(value, step=seed)
            should = should or self._by_seed.should_prune()
        last = ended and seed + 1 == self._search.tune.seeds
        return should and self._may_prune and not last

    @property
    def state(self) -> dict[str, Any]:
        """What the pruner stored with this trial, for decisions on later trials."""
        return dict(self._epochs.trials[self._number].system_attrs)


def _first_seed(search: Search, trial: TrialRecord) -> TrialRecord:
    """A trial with the intermediate values of its first seed, by epoch."""
    values = {step: value for step, value in trial.intermediate_values.items() if step <= search.epochs}
    return replace(trial, intermediate_values=values)


def _by_seed(search: Search, trial: TrialRecord) -> TrialRecord:
    """A trial with the results of its seeds as intermediate values, by position."""
    return replace(trial, intermediate_values=dict(enumerate(seeds_of(trial, search.epochs))))


def _view(
    search: Search, trials: Sequence[TrialRecord], number: int, sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    # Hyperband hashes the name to choose a trial's bracket
    view = optuna.create_study(study_name="view", directions=search.directions, sampler=sampler, pruner=pruner)
    start = search.generation_start(number)
    for trial in trials[:number]:
        view.add_trial(_frozen(search, trial, known=trial.number < start))
    return view


def _frozen(search: Search, trial: TrialRecord, known: bool) -> FrozenTrial:
    if known and not trial.finished:
        raise AssertionError(f"trial {trial.number} of an earlier generation is {trial.state}")
    space = distributions(search.space, trial.params)
    if not known:
        return create_trial(state=TrialState.RUNNING, params=trial.params, distributions=space)
    return create_trial(
        state=STATES[trial.state],
        values=objectives(trial.value, trial.macs) if trial.state == "complete" else None,
        params=trial.params,
        distributions=space,
        intermediate_values=trial.intermediate_values,
        system_attrs=trial.pruner_state,
    )


def objectives(value: float | None, macs: int | None) -> list[float]:
    """Return the values of a complete trial, in the order of `Search.directions`."""
    return [float(one) for one in (value, macs) if one is not None]


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


def distributions(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter of a trial."""
    return {one.name: _distribution(one) for one in space.parameters if one.name in params}


def _distribution(parameter: Parameter) -> BaseDistribution:
    values = parameter.values
    if parameter.choices:
        return CategoricalDistribution(list(parameter.choices))
    assert values.low is not None and values.high is not None
    if parameter.integer:
        return IntDistribution(int(values.low), int(values.high), values.log, int(values.step or 1))
    return FloatDistribution(values.low, values.high, values.log, values.step)


def suggest(trial: Trial, space: SearchSpace) -> dict[str, Any]:
    """Draw the parameters that are used, each after those that decide whether it is."""
    params: dict[str, Any] = {}
    for parameter in space.parameters:
        if space.is_used(parameter, params):
            params[parameter.name] = _draw(trial, parameter)
    return params


def _draw(trial: Trial, parameter: Parameter) -> Any:
    match _distribution(parameter):
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(parameter.name, choices)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(parameter.name, low, high, log=log, step=step)
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(parameter.name, low, high, log=log, step=step)

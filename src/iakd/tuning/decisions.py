"""What to try and what to give up: decided from earlier generations of trials, so that studies repeat exactly.

The shared study changes while workers run. Decisions are therefore made in a private study in memory, the
view of a trial: all trials of earlier generations with their outcomes, and its predecessors of its own
generation as running. Views depend on neither timing nor number of workers.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from iakd.config import Pruner, Recipe, Schedule, Tune
from iakd.seeding import derive
from iakd.tuning.results import TrialRecord
from iakd.tuning.search_space import distributions, first_trials, suggest
from iakd.tuning.shared_study import STATES


@dataclass(frozen=True)
class Search:
    """All that the decisions of a study depend on, beside its trials."""

    tune: Tune
    recipe: Recipe
    first: list[Schedule]

    def generation_start(self, number: int) -> int:
        """Number of the first trial of the generation that trial `number` belongs to."""
        return number - number % self.tune.generation


def propose(search: Search, records: list[TrialRecord], number: int) -> tuple[dict[str, Any], str]:
    """Parameters and origin of trial `number`; `records` holds at least all trials before it."""
    first, _ = first_trials(search.first, search.tune.space, search.recipe)
    if number < len(first):
        return first[number], "first"
    view = _view(search, records, number, _sampler(search.tune, number), NopPruner())
    return suggest(view.ask(), search.tune.space, search.recipe), "sampler"


class Judge:
    """Decides whether trial `number` is given up, from what earlier generations reached by the same epoch."""

    def __init__(self, search: Search, records: list[TrialRecord], number: int) -> None:
        self._number = number
        self._view = _view(search, records, number, RandomSampler(seed=0), _pruner(search.tune.pruner, search.recipe))
        self._trial = self._view.ask()

    def gives_up(self, epoch: int, value: float) -> bool:
        """Take in the accuracy that the trial reached by the end of `epoch` (1-based) and judge."""
        self._trial.report(value, step=epoch)
        return self._trial.should_prune()

    @property
    def memory(self) -> dict[str, Any]:
        """What the pruner noted about this trial, for the judgement of later ones."""
        return dict(self._view.trials[self._number].system_attrs)


def _view(
    search: Search, records: list[TrialRecord], number: int, sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    # the name is an input of Hyperband's choice of brackets
    view = optuna.create_study(study_name="view", direction="maximize", sampler=sampler, pruner=pruner)
    start = search.generation_start(number)
    for record in records[:number]:
        view.add_trial(_copy(search, record, known=record.number < start))
    return view


def _copy(search: Search, record: TrialRecord, known: bool) -> FrozenTrial:
    if known and not record.finished:
        raise AssertionError(f"trial {record.number} of an earlier generation is {record.state}")
    drawn_from = distributions(search.tune.space, record.values["kind"], search.recipe)
    if not known:
        return create_trial(state=TrialState.RUNNING, params=record.values, distributions=drawn_from)
    return create_trial(
        state=STATES[record.state],
        value=record.value if record.state == "complete" else None,
        params=record.values,
        distributions=drawn_from,
        intermediate_values=record.reports,
        system_attrs=record.memory,
    )


def _sampler(tune: Tune, number: int) -> BaseSampler:
    seed = derive("sampler", tune.seed, number) % 2**32
    if tune.sampler.kind == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # says `group`
        return TPESampler(
            n_startup_trials=tune.sampler.startup,
            n_ei_candidates=tune.sampler.candidates,
            seed=seed,
            multivariate=tune.sampler.multivariate,
            group=tune.sampler.multivariate,  # models conditional parameters together, too
            constant_liar=True,  # keeps away from predecessors in the generation
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

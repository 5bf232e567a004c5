"""One trial: train the student with its schedule, publish its files, then tell the study."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import Trial

from iakd import files
from iakd.config import Schedule
from iakd.errors import RunFailed
from iakd.experiment import run_dir
from iakd.tuning.decisions import Judge, Search
from iakd.tuning.search_space import suggest
from iakd.tuning.shared_study import SharedStudy

MEASURE = "val_top1"
OnValidation = Callable[[int, run_dir.Row], None]


class TrialTrainer(Protocol):
    """Trains the students of a study; made once in every worker process."""

    def run(self, number: int, schedule: Schedule) -> run_dir.Run:
        """The run of trial `number`: its files and its identity."""
        ...

    def train(
        self, run: run_dir.Run, schedule: Schedule, on_validation: OnValidation
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        """Train to the end from wherever the run was left; history and metrics with val_top1 (percent)."""
        ...


class GivenUp(Exception):
    """The trial is not worth finishing."""


@dataclass
class TrialResult:
    """How a trial ended."""

    state: str
    value: float | None
    reason: str | None = None


class Watch:
    """Takes in each validation of a trial, new or read back, and raises GivenUp when the pruner says so."""

    def __init__(self, search: Search, study: SharedStudy, trial: Trial) -> None:
        records = study.records()
        record = records[trial.number]
        self.rows: list[run_dir.Row] = []
        self.judge = Judge(search, records, trial.number)
        self._trial = trial
        self._known = set(record.reports)  # by an interrupted attempt
        self._epochs = search.recipe.epochs
        self._may_give_up = record.origin != "first"  # so that the best is never worse than what the settings name

    def __call__(self, epoch: int, row: run_dir.Row) -> None:
        """Take in the row of the history that ends `epoch` (1-based)."""
        value = float(row[MEASURE] or 0.0)
        self.rows.append(row)
        if epoch not in self._known:
            self._trial.report(value, step=epoch)
        give_up = self.judge.gives_up(epoch, value)
        if give_up and self._may_give_up and epoch < self._epochs:
            raise GivenUp


def carry_out(search: Search, study: SharedStudy, trainer: TrialTrainer, number: int) -> None:
    """Bring trial `number` to its end. Files first: a trial that was published but not told is read back."""
    trial = study.claim(number)
    schedule = Schedule(**suggest(trial, search.tune.space, search.recipe))
    run = trainer.run(number, schedule)
    watch = Watch(search, study, trial)
    outcome = _read_back(run, watch) if run.finished else _train(run, schedule, trainer, watch)
    study.tell(trial, outcome.state, outcome.value, outcome.reason, watch.judge.memory)


def _train(run: run_dir.Run, schedule: Schedule, trainer: TrialTrainer, watch: Watch) -> TrialResult:
    with run.open():
        history, metrics = watch.rows, dict[str, Any]()
        try:
            history, metrics = trainer.train(run, schedule, watch)
            outcome = TrialResult("complete", float(metrics[MEASURE]))
        except GivenUp:  # only the validated epochs are at hand, in an uninterrupted trial as in a resumed one
            outcome = TrialResult("pruned", float(watch.rows[-1][MEASURE] or 0.0))
        except RunFailed as error:
            outcome = TrialResult("failed", None, str(error))
        run.finish(history, {**_finite(metrics), **vars(outcome)})
    return outcome


def _finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinities: an entropy may have overflowed although the accuracy is sound."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def _read_back(run: run_dir.Run, watch: Watch) -> TrialResult:
    metrics = files.read_json(run.folder / run_dir.METRICS, f"delete {run.folder} to train the trial anew")
    try:
        for row in run_dir.read_history(run.folder / run_dir.HISTORY):
            if row.get(MEASURE) is not None:
                watch(int(row["epoch"] or 0), row)
    except GivenUp:
        pass
    run.clear_live()  # where the process died in between
    return TrialResult(metrics["state"], metrics["value"], metrics["reason"])

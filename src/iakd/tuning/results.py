"""The results of a study: its trials, their history and the best schedule; how they are written and read."""

import csv
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from iakd import files
from iakd.config import Schedule, explain
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.run_dir import JOURNAL, SCHEDULE, TRIALS

if TYPE_CHECKING:
    import optuna


FINISHED = ("complete", "pruned", "failed")
PARAMS = tuple(Schedule.model_fields)
INTEGER_PARAMS = tuple(name for name, about in Schedule.model_fields.items() if about.annotation is int)
COLUMNS = ("number", "state", "value", "origin", *PARAMS, "epochs", "seconds", "started", "finished", "reason")
TEXT_COLUMNS = ("state", "origin", "kind", "started", "finished", "reason")
INTEGER_COLUMNS = ("number", "epochs", *INTEGER_PARAMS)
MIN_BEST = 5  # complete trials that importances compare with the others; Optuna's advice


@dataclass(frozen=True)
class TrialRecord:
    """What a study knows about one trial."""

    number: int
    state: str  # waiting, running, complete, pruned, failed
    params: dict[str, Any]  # the kind of schedule and the settings that this kind uses
    origin: str  # first: a schedule from the settings; sampler
    value: float | None = None  # validation accuracy, percent; of a pruned trial: when it was pruned
    intermediate_values: dict[int, float] = field(default_factory=dict)  # epoch -> validation accuracy, percent
    pruner_state: dict[str, Any] = field(default_factory=dict)  # what the pruner stored with it
    reason: str | None = None  # why it failed

    @property
    def finished(self) -> bool:
        """Whether the trial has ended."""
        return self.state in FINISHED


def write_schedule(folder: Path, study: str, number: int, value: float, settings: dict[str, object]) -> Path:
    """Write the schedule of trial `number`, which reached `value` percent on validation; return the path."""
    head = f"# Best schedule of the study {study}: trial {number}, {value:.2f} % on validation\n"
    files.write_text(folder / SCHEDULE, head + yaml.safe_dump(settings, sort_keys=False))
    return folder / SCHEDULE


def read_schedule(folder: Path) -> Schedule:
    """Return the schedule in a study's results folder. Raises UserError where it is missing or damaged."""
    path = folder / SCHEDULE
    try:
        return Schedule.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `iakd tune` first") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({explain(error, Schedule)}): run `iakd tune` again") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): run `iakd tune` again") from None


def best(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the complete trial with the highest value, the earliest one of a tie."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def history(trials: list[TrialRecord]) -> list[run_dir.Row]:
    """Return a row per trial in the order of their numbers, up to the first one that has not ended."""
    rows: list[run_dir.Row] = []
    for trial in trials:
        if not trial.finished:
            break
        best_trial = best(trials[: trial.number + 1])
        rows.append(
            {
                "trial": trial.number,
                "value": trial.value if trial.state == "complete" else None,
                "best_value": best_trial.value if best_trial else None,
            }
        )
    return rows


def summary(trials: list[TrialRecord]) -> dict[str, Any]:
    """Return the metrics of a study."""
    best_trial = best(trials)
    counts = {state: sum(trial.state == state for trial in trials) for state in FINISHED}
    return {
        "best_value": best_trial.value if best_trial else None,
        "best_trial": best_trial.number if best_trial else None,
        "trials": len(trials),
        **counts,
    }


def write_trials(folder: Path, trials: list[TrialRecord]) -> None:
    """Write trials.csv; a cell is empty where the kind does not use the setting or the value is unknown."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        about = trial_run(folder, trial.number)
        writer.writerow(
            {
                "number": trial.number,
                "state": trial.state,
                "value": trial.value,
                "origin": trial.origin,
                **trial.params,
                "epochs": max(trial.intermediate_values, default=None),
                "seconds": about.get("wall_seconds"),
                "started": about.get("started"),
                "finished": about.get("finished"),
                "reason": trial.reason,
            }
        )
    files.write_text(folder / TRIALS, out.getvalue())


def up_to_date(run: run_dir.Run, trials: int) -> bool:
    """Return whether the complete results of this study, with this number of trials, are published."""
    try:
        counted = files.read_json(run.folder / run_dir.METRICS, "").get("trials") if run.finished else None
    except UserError:
        return False
    return counted == trials and all((run.folder / name).exists() for name in (SCHEDULE, TRIALS, JOURNAL))


def study_name(path: str) -> str:
    """Return the name of the study whose files are at `path`: digits/resnet20-resnet8."""
    return path.replace("/tune/", "/")


def trial_path(number: int) -> str:
    """Return the path of a trial below that of its study."""
    return f"trials/{number:04d}"


def trial_run(folder: Path, number: int) -> dict[str, Any]:
    """Return the run.json of a trial; empty if it is missing."""
    path = folder / trial_path(number) / run_dir.RUN
    return files.read_json(path, "delete its folder and run again") if path.exists() else {}


def finished_trials(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of trials.csv: numbers as numbers, empty cells as None. Raises UserError if it is missing."""
    path = folder / TRIALS
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `iakd tune` first") from None
    return [{name: _read(name, cell) for name, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]


def _read(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if name in TEXT_COLUMNS:
        return cell
    return int(cell) if name in INTEGER_COLUMNS else float(cell)


def load_study(folder: Path) -> "optuna.Study":
    """Return an in-memory copy of the study in study.journal, with the trials that are listed in trials.csv.

    Raises UserError where a file is missing.
    """
    import optuna
    from optuna.pruners import NopPruner
    from optuna.samplers import RandomSampler
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    numbers = {row["number"] for row in finished_trials(folder)}
    if not path.exists():
        raise UserError(f"{path} does not exist: run `iakd tune` first")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.create_study(
        study_name=name, direction="maximize", sampler=RandomSampler(seed=0), pruner=NopPruner()
    )
    study.add_trials(t for t in optuna.load_study(study_name=name, storage=storage).trials if t.number in numbers)
    return study


def importances(folder: Path) -> dict[str, float]:
    """Return how much each setting mattered for being among the best trials: shares of 1, largest first.

    Conditional PED-ANOVA (arXiv 2601.20800), which also covers settings that only some kinds use and is
    deterministic. Empty where too few trials are complete, or all are equally good.
    """
    import optuna

    study = load_study(folder)
    values = [trial.value for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    if len(values) <= MIN_BEST or len(set(values)) == 1:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(0.1, MIN_BEST / len(values)), region_quantile=1.0, evaluate_on_local=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about settings that few trials have
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

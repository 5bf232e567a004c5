"""What a study publishes, and what it shows while it runs: trials, their history, the best schedule."""

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

if TYPE_CHECKING:
    import optuna


FINISHED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class TrialRecord:
    """A trial as everybody knows it."""

    number: int
    state: str  # waiting, running, complete, pruned, failed
    values: dict[str, Any]  # its parameters: the kind of schedule and what that kind uses
    origin: str  # first: named by the settings; sampler
    value: float | None = None  # validation accuracy, percent; of a pruned trial: when it was given up
    reports: dict[int, float] = field(default_factory=dict)  # epoch -> validation accuracy, percent
    memory: dict[str, Any] = field(default_factory=dict)  # what the pruner noted about it
    reason: str | None = None  # why it failed

    @property
    def finished(self) -> bool:
        """Whether nothing about it will change."""
        return self.state in FINISHED


SCHEDULE = "schedule.yaml"


def write_schedule(folder: Path, study: str, number: int, value: float, settings: dict[str, object]) -> Path:
    """Write the settings that the kind of trial `number` uses; the trial reached `value` percent."""
    head = f"# Best schedule of the study {study}: trial {number}, {value:.2f} % on validation\n"
    files.write_text(folder / SCHEDULE, head + yaml.safe_dump(settings, sort_keys=False))
    return folder / SCHEDULE


def read_schedule(folder: Path) -> Schedule:
    """The schedule in a study's results folder. Raises UserError where it is missing or damaged."""
    path = folder / SCHEDULE
    try:
        return Schedule.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `iakd tune` first") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({explain(error, Schedule)}): run `iakd tune` again") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): run `iakd tune` again") from None


TRIALS, JOURNAL = "trials.csv", "study.journal"
PARAMETERS = ("kind", "p0", "p1", "t_end", "slope", "student_only", "cycles", "steps", "steepness")
COLUMNS = (
    "number",
    "state",
    "value",
    "origin",
    *PARAMETERS,
    "epochs",
    "seconds",
    "started",
    "finished",
    "reason",
)


def best(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the highest value, the earliest of equals."""
    complete = [record for record in records if record.state == "complete"]
    return max(complete, key=lambda record: (record.value, -record.number), default=None)


def history(records: list[TrialRecord]) -> list[run_dir.Row]:
    """A row per trial in order of number, up to the first that has not ended."""
    rows: list[run_dir.Row] = []
    for record in records:
        if not record.finished:
            break
        winner = best(records[: record.number + 1])
        rows.append(
            {
                "trial": record.number,
                "value": record.value if record.state == "complete" else None,
                "best_value": winner.value if winner else None,
            }
        )
    return rows


def summary(records: list[TrialRecord]) -> dict[str, Any]:
    """The metrics of a study."""
    winner = best(records)
    counts = {state: sum(record.state == state for record in records) for state in FINISHED}
    return {
        "best_value": winner.value if winner else None,
        "best_trial": winner.number if winner else None,
        "trials": len(records),
        **counts,
    }


def write_trials(folder: Path, records: list[TrialRecord]) -> None:
    """Write trials.csv; an empty cell is a setting that a kind does not use, or something unknown."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        about = trial_run(folder, record.number)
        writer.writerow(
            {
                "number": record.number,
                "state": record.state,
                "value": record.value,
                "origin": record.origin,
                **record.values,
                "epochs": max(record.reports, default=None),
                "seconds": about.get("wall_seconds"),
                "started": about.get("started"),
                "finished": about.get("finished"),
                "reason": record.reason,
            }
        )
    files.write_text(folder / TRIALS, out.getvalue())


def up_to_date(run: run_dir.Run, trials: int) -> bool:
    """Whether the results hold this very study with this number of trials, whole."""
    try:
        counted = files.read_json(run.folder / run_dir.METRICS, "").get("trials") if run.finished else None
    except UserError:
        return False
    return counted == trials and all((run.folder / name).exists() for name in (SCHEDULE, TRIALS, JOURNAL))


def study_name(path: str) -> str:
    """How people call the study whose files are at `path`: digits/resnet20-resnet8."""
    return path.replace("/tune/", "/")


def trial_path(number: int) -> str:
    """Where a trial lives, below its study."""
    return f"trials/{number:04d}"


def trial_run(folder: Path, number: int) -> dict[str, Any]:
    """The run.json of a trial; empty where it is missing."""
    path = folder / trial_path(number) / run_dir.RUN
    return files.read_json(path, "delete its folder and run again") if path.exists() else {}


TEXTS = ("state", "origin", "kind", "started", "finished", "reason")
INTEGERS = ("number", "cycles", "steps", "epochs")
FEWEST_ON_TOP = 5  # complete trials that importances compare with the others; Optuna's advice


def finished_trials(folder: Path) -> list[dict[str, Any]]:
    """The rows of trials.csv: numbers as numbers, empty cells as None. Raises UserError if it is missing."""
    path = folder / TRIALS
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `iakd tune` first") from None
    return [{name: _read(name, cell) for name, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]


def _read(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if name in TEXTS:
        return cell
    return int(cell) if name in INTEGERS else float(cell)


def load_study(folder: Path) -> "optuna.Study":
    """The study in study.journal, as a copy in memory of the trials that count (those in trials.csv).

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
    """How much each setting mattered for being among the best trials: shares of 1, largest first.

    Conditional PED-ANOVA (arXiv 2601.20800), which also weighs settings that only some kinds use; it has no
    random part. Empty where too few trials are complete, or all are equally good.
    """
    import optuna

    study = load_study(folder)
    values = [trial.value for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    if len(values) <= FEWEST_ON_TOP or len(set(values)) == 1:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(0.1, FEWEST_ON_TOP / len(values)), region_quantile=1.0, evaluate_on_local=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that few trials have
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

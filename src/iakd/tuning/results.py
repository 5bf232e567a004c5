"""The results of a study: its trials, their history and the best settings; how they are written and read."""

import contextlib
import csv
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from iakd import files
from iakd.config import Method, Recipe, explain, merged
from iakd.config.base import plain
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import StudentJob
from iakd.experiment.run_dir import BEST, JOURNAL, TRIALS

if TYPE_CHECKING:
    import optuna


FINISHED = ("complete", "pruned", "failed")
COLUMNS = ("number", "state", "value", "origin")  # of trials.csv; then a column for each setting, then MORE_COLUMNS
MORE_COLUMNS = ("macs", "epochs", "seconds", "started", "finished", "reason")
TEXT_COLUMNS = ("state", "origin", "started", "finished", "reason")
NUMBERS = ("value", "macs", "epochs", "seconds")
MIN_BEST = 5  # complete trials that importances compare with the others; Optuna's advice


@dataclass(frozen=True)
class TrialRecord:
    """What a study knows about one trial."""

    number: int
    state: str  # waiting, running, complete, pruned, failed
    params: dict[str, Any]  # the settings that it tries, as `config.search_space` names and stores them
    origin: str  # first: the method as it stands, or with a schedule from the settings; sampler
    value: float | None = (
        None  # validation accuracy, percent, mean over its seeds so far; if pruned in one, at that time
    )
    intermediate_values: dict[int, float] = field(default_factory=dict)  # step -> validation accuracy, percent
    pruner_state: dict[str, Any] = field(default_factory=dict)  # what the pruner stored with it
    reason: str | None = None  # why it failed
    macs: int | None = None  # multiply–accumulates of one training, where they are an objective

    @property
    def finished(self) -> bool:
        """Whether the trial has ended."""
        return self.state in FINISHED


def step_of(seed: int, epoch: int, epochs: int) -> int:
    """Return the step of an intermediate value: the epochs that a trial has trained, over all its seeds so far.

    `seed` is its position, from 0; `epoch` is 1-based.
    """
    return seed * epochs + epoch


def seeds_of(trial: TrialRecord, epochs: int) -> list[float]:
    """Return the validation accuracy of each seed that a trial has trained to the end."""
    finished = takewhile(lambda step: step in trial.intermediate_values, count(epochs, epochs))
    return [trial.intermediate_values[step] for step in finished]


def write_best(folder: Path, label: str, entry: dict[str, Any], about: str) -> Path:
    """Write the entry of `methods` with the settings that a study has found; return the path."""
    head = f"# {about}\n# To keep these settings without the study, put this below `methods` in params.yaml.\n"
    files.write_text(folder / BEST, head + yaml.safe_dump({label: entry}, sort_keys=False, allow_unicode=True))
    return folder / BEST


def read_best(folder: Path) -> Method:
    """Return the method in a study's results folder. Raises UserError where it is missing or damaged."""
    path = folder / BEST
    try:
        ((_, entry),) = yaml.safe_load(path.read_text()).items()
        return Method.model_validate(entry)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `iakd tune` first") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({explain(error, Method)}): run `iakd tune` again") from None
    except (UnicodeDecodeError, yaml.YAMLError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): run `iakd tune` again") from None


def with_found_settings(job: StudentJob) -> StudentJob:
    """Return a student's job with the method and the recipe that its study has found.

    Raises UserError where these are missing or damaged.
    """
    if job.study is None:
        return job
    method = read_best(job.study.folder)
    return replace(job, method=method, recipe=Recipe.model_validate(merged(plain(job.recipe), method.recipe)))


def best(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the complete trial with the highest value, the earliest one of a tie."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def pareto_front(trials: Iterable[TrialRecord]) -> list[int]:
    """Return the complete trials that no other one surpasses in one objective without being worse in the other."""
    complete = [(trial.value or 0.0, -(trial.macs or 0), trial.number) for trial in trials if trial.state == "complete"]
    return [
        number
        for value, cheapness, number in complete
        if not any(
            other[0] >= value and other[1] >= cheapness and other[:2] != (value, cheapness) for other in complete
        )
    ]


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
        **({"pareto_front": pareto_front(trials)} if any(trial.macs is not None for trial in trials) else {}),
    }


def write_trials(folder: Path, trials: list[TrialRecord], settings: list[str]) -> None:
    """Write trials.csv; a cell is empty where a trial does not use the setting, or the value is unknown."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS, *settings, *MORE_COLUMNS], lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        about = trial_run(folder, trial.number)
        row = {
            "number": trial.number,
            "state": trial.state,
            "value": trial.value,
            "origin": trial.origin,
            **trial.params,
            "macs": trial.macs,
            "epochs": max(trial.intermediate_values, default=None),
            "seconds": about.get("wall_seconds"),
            "started": about.get("started"),
            "finished": about.get("finished"),
            "reason": trial.reason,
        }
        writer.writerow({name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()})
    files.write_text(folder / TRIALS, out.getvalue())


def up_to_date(run: run_dir.Run, trials: int) -> bool:
    """Return whether the complete results of this study, with this number of trials, are published."""
    try:
        return run.finished and is_complete(run.folder, trials)
    except UserError:
        return False


def is_complete(folder: Path, trials: int) -> bool:
    """Return whether a study's folder has the results of this number of trials. Raises UserError if it is damaged."""
    counted = files.read_object(folder / run_dir.METRICS, "run `iakd tune` again").get("trials")
    return counted == trials and all((folder / name).exists() for name in (BEST, TRIALS, JOURNAL))


def study_name(path: str) -> str:
    """Return the name of the study whose files are at `path`: digits/resnet20-resnet8/kd-tuned."""
    return path.replace("/tune/", "/")


def stored_name(run: run_dir.Run, address: str | None) -> str:
    """Return the name of a study in its storage: a database at `address` keeps those of other settings."""
    name = study_name(run.path)
    return f"{name}@{run.key[:12]}" if address else name


def trial_path(number: int) -> str:
    """Return the path of a trial below that of its study."""
    return f"trials/{number:04d}"


def trial_run(folder: Path, number: int) -> dict[str, Any]:
    """Return the run.json of a trial; empty if it is missing."""
    path = folder / trial_path(number) / run_dir.RUN
    return files.read_object(path, "delete its folder and run `iakd tune` again") if path.exists() else {}


def finished_trials(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of trials.csv, with values of their types and None for empty cells.

    Raises UserError if it is missing or damaged.
    """
    path = folder / TRIALS
    try:
        rows = [{name: _read(name, cell) for name, cell in row.items()} for row in run_dir.read_rows(path)]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `iakd tune` first") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run `iakd tune` again") from None
    for row in rows:
        if not (set(COLUMNS) <= set(row) and isinstance(row["number"], int)):
            raise UserError(f"{path} is damaged (columns are missing): run `iakd tune` again")
        known = row["value"] is not None if row["state"] == "complete" else row["state"] in FINISHED
        if not known or not all(isinstance(row.get(name, 0), int | float | None) for name in NUMBERS):
            raise UserError(f"{path} is damaged (trial {row['number']}): run `iakd tune` again")
    return rows


def _read(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if name in TEXT_COLUMNS:
        return cell
    if cell in ("true", "false"):
        return cell == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(cell)
    return cell


def settings_in(rows: list[dict[str, Any]]) -> list[str]:
    """Return the settings that a study searched, given the rows of its trials.csv."""
    return [name for name in (rows[0] if rows else {}) if name not in (*COLUMNS, *MORE_COLUMNS)]


def load_study(folder: Path) -> "optuna.Study":
    """Return an in-memory copy of the study in study.journal, with the trials that are listed in trials.csv.

    Raises UserError where a file is missing or damaged.
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
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        (name,) = optuna.get_all_study_names(storage)
        stored = optuna.load_study(study_name=name, storage=storage)
        study = optuna.create_study(
            study_name=name, directions=stored.directions, sampler=RandomSampler(seed=0), pruner=NopPruner()
        )
        study.add_trials(trial for trial in stored.trials if trial.number in numbers)
    except OSError:
        raise
    except Exception as error:  # Optuna raises almost anything for a damaged journal
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): run `iakd tune` again") from None
    return study


def importances(folder: Path) -> dict[str, float]:
    """Return how much each setting mattered for being among the best trials: shares of 1, largest first.

    Conditional PED-ANOVA (arXiv 2601.20800), which also covers settings that only some trials use and is
    deterministic. Empty where too few trials are complete, or all are equally good.
    """
    import optuna

    study = load_study(folder)
    values = [trial.values[0] for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    if len(values) <= MIN_BEST or len(set(values)) == 1:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(0.1, MIN_BEST / len(values)), region_quantile=1.0, evaluate_on_local=True
    )
    with warnings.catch_warnings():
        # about settings that few trials have, and that a target is taken to be minimised: hence its sign
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -trial.values[0]
        )
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

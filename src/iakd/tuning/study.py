"""A finished study, for whoever draws or tabulates it."""

import csv
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iakd.errors import UserError
from iakd.tuning.products import JOURNAL, TRIALS

if TYPE_CHECKING:
    import optuna

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


def load(folder: Path) -> "optuna.Study":
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

    study = load(folder)
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

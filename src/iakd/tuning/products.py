"""What a study publishes, and what it shows while it runs."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iakd import files, runs
from iakd.errors import UserError
from iakd.tuning.records import FINISHED, Record
from iakd.tuning.winner import SCHEDULE

TRIALS, JOURNAL = "trials.csv", "study.journal"
PARAMETERS = ("kind", "p0", "p1", "t_end", "slope", "solo", "cycles", "steps", "steepness")
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


def best(records: Iterable[Record]) -> Record | None:
    """The complete trial with the highest value, the earliest of equals."""
    complete = [record for record in records if record.state == "complete"]
    return max(complete, key=lambda record: (record.value, -record.number), default=None)


def history(records: list[Record]) -> list[runs.Row]:
    """A row per trial in order of number, up to the first that has not ended."""
    rows: list[runs.Row] = []
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


def summary(records: list[Record]) -> dict[str, Any]:
    """The metrics of a study."""
    winner = best(records)
    counts = {state: sum(record.state == state for record in records) for state in FINISHED}
    return {
        "best_value": winner.value if winner else None,
        "best_trial": winner.number if winner else None,
        "trials": len(records),
        **counts,
    }


def write_trials(folder: Path, records: list[Record]) -> None:
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


def up_to_date(run: runs.Run, trials: int) -> bool:
    """Whether the results hold this very study with this number of trials, whole."""
    try:
        counted = files.read_json(run.folder / runs.METRICS, "").get("trials") if run.finished else None
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
    path = folder / trial_path(number) / runs.RUN
    return files.read_json(path, "delete its folder and run again") if path.exists() else {}

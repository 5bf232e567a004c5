"""`iakd status`: what is done, what runs, what has to run again and why, and how long the rest takes.

Snakemake decides (a dry run), and this module reads its decision.
"""

from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from iakd import files
from iakd.errors import UserError
from iakd.experiment.jobs import STATE, Experiment
from iakd.experiment.run_dir import RUN
from iakd.orchestration import run_view
from iakd.orchestration.run_view import PLURALS, outcome, workload
from iakd.orchestration.workload import (
    STAGES,
    TRAININGS,
    Piece,
    Running,
    live_seconds,
    live_trainings,
    name_of,
    piece_of,
)
from iakd.reporting.formatting import duration

NAMES = {  # Snakemake's reasons, by their own names, in fewer words
    "updated input files": "changed inputs",
    "input files updated by another job": "made from what is made again",
    "set of input files has changed since last execution": "made from other files",
    "code has changed since last execution": "a changed rule",
    "software environment definition has changed since last execution": "another software environment",
}
SHOWN = 8  # reasons, and running jobs
COLUMNS = ("done", "running", "outdated", "missing")


def show_status() -> None:
    """Print the state of this process's workflow, of which a dry run has just ended."""
    workflow, experiment = run_view.connected()
    if experiment is not None:
        print(status(workflow, experiment))


def status(workflow: Any, experiment: Experiment) -> str:
    """Return the state of the experiment as text, given Snakemake's workflow after a dry run."""
    work = workload(workflow, experiment)
    running = [Running(piece, live_seconds(piece) or 0.0, work.progress(piece)) for piece in live_trainings(experiment)]
    at_work = {(job.piece.rule, path) for job in running for path in job.piece.paths}
    table: dict[str, Counter[str]] = {rule: Counter() for rule in STAGES}
    reasons: dict[str, list[str]] = defaultdict(list)
    several = len(experiment.params.paired) > 1
    for job in workflow.dag.jobs:
        piece = piece_of(job.rule.name, job.output)
        if piece.rule not in table:
            continue
        if {(piece.rule, path) for path in piece.paths} & at_work:
            table[piece.rule]["running"] += 1
        elif not workflow.dag.needrun(job):
            table[piece.rule]["done"] += 1
        elif any(not Path(path).exists() for path in job.output):
            table[piece.rule]["missing"] += 1
        else:
            table[piece.rule]["outdated"] += 1
            for why in _reasons(workflow.dag.reason(job)):
                reasons[why].append(" ".join(filter(None, name_of(piece, several))))
    lines = [_line("", *COLUMNS)]
    lines += [
        _line(PLURALS[rule], *(counts[name] or "" for name in COLUMNS)) for rule, counts in table.items() if counts
    ]
    if running:
        lines += ["", "Running:"]
        for one in running[:SHOWN]:
            parts = [*name_of(one.piece, several), one.progress.text, one.progress.accuracy]
            lines.append("  " + "  ".join(filter(None, parts)))
        lines += [f"  … and {len(running) - SHOWN} more"] * (len(running) > SHOWN)
    failed = [(piece, why) for piece in work.pieces for path in piece.paths if (why := _failure(piece, path))]
    failed = [(piece, why) for piece, why in failed if (piece.rule, piece.paths[0]) not in at_work]
    if failed:
        lines += ["", "Failed:"]
        lines += [f"  {' '.join(name_of(piece, several))}: {why}" for piece, why in failed[:SHOWN]]
        lines += [f"  … and {len(failed) - SHOWN} more"] * (len(failed) > SHOWN)
    if reasons:
        lines += ["", "Outdated:"]
        derived = NAMES["input files updated by another job"]
        ranked = sorted(reasons.items(), key=lambda item: (item[0] == derived, -len(item[1])))
        for why, jobs in ranked[:SHOWN]:
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            lines.append(f"  {why}: {jobs[0]}{more}")
        lines += [f"  … and {len(ranked) - SHOWN} other reasons"] * (len(ranked) > SHOWN)
    waiting = [piece for piece in work.pieces if not {(piece.rule, path) for path in piece.paths} & at_work]
    if not waiting and not running:
        return "\n".join([*lines, "", "Everything is up to date.", *outcome(experiment)])
    left = work.left(waiting, running)
    return "\n".join([*lines, "", _time(left)])


def _failure(piece: Piece, path: str) -> str:
    """Return why the last attempt of a training failed; nothing if it did not, or was interrupted."""
    with suppress(OSError, UserError):
        if piece.rule not in TRAININGS:
            return ""
        error = str(files.read_object(STATE / path / RUN, "").get("error", ""))
        return "" if error.startswith("KeyboardInterrupt") else error.partition(": ")[2].removeprefix(f"{path}: ")
    return ""


def _line(name: str, *cells: Any) -> str:
    return f"{name:<12}" + "".join(f"{cell:>10}" for cell in cells)


def _time(left: float | None) -> str:
    if left is None:
        return "How long the rest takes is known once a training has run."
    return f"The rest takes about {duration(left)}."


def _reasons(reason: Any) -> list[str]:
    """Return why a job runs again: changed settings one by one, else the reason's name, as Snakemake has it."""
    changed = reason.params_changed
    if not changed:
        return [NAMES.get(name, name) for name in reason.get_names()]
    old, new = (dict(_setting(text) for text in texts) for texts in (changed.only_old, changed.only_new))
    return [
        "changed sources" if name == "source" else f"{name}: {old.get(name, '–')} → {new.get(name, '–')}"
        for name in sorted({*old, *new})
    ]


def _setting(text: str) -> tuple[str, str]:
    """Return name and value of a parameter, which Snakemake has recorded as the repr() of `name=value`."""
    name, _, value = text.strip("'\"").partition("=")
    return name, value

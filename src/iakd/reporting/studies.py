"""A finished study as the report shows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd.experiment.jobs import StudyJob
from iakd.experiment.run_dir import HISTORY, read_history

PARAMETERS = ("kind", "p0", "p1", "t_end", "slope", "student_only", "cycles", "steps", "steepness")
Trial = dict[str, Any]  # a row of trials.csv
Course = tuple[NDArray[np.float64], NDArray[np.float64]]  # progress (E,), planned p of each block (E, blocks)


@dataclass(frozen=True)
class Study:
    """The trials of one pair, `importances` (shares of 1) and the planned course of p in each trial."""

    pair: str
    title: str
    trials: list[Trial]
    importances: dict[str, float]
    courses: dict[int, Course]

    @property
    def complete(self) -> list[Trial]:
        """The trials that trained to the end."""
        return [trial for trial in self.trials if trial["state"] == "complete"]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest value, the earliest of equals."""
        return max(self.complete, key=lambda trial: (trial["value"], -trial["number"]), default=None)

    @property
    def sampled(self) -> list[str]:
        """The settings in which trials differ."""
        return [name for name in PARAMETERS if len({trial.get(name) for trial in self.trials} - {None}) > 1]


def study(job: StudyJob, trials: list[Trial], importances: dict[str, float]) -> Study:
    """Put together what is known of a study; its trials' histories are read from below its folder."""
    pair = (job.teacher.network.name, job.student.name)
    courses = {}
    for trial in trials:
        path = job.folder / "trials" / f"{trial['number']:04d}" / HISTORY
        if path.exists() and (read := _course(path, job.recipe.epochs)):
            courses[trial["number"]] = read
    return Study("-".join(pair), " → ".join(pair), trials, importances, courses)


def _course(path: Path, epochs: int) -> Course | None:
    rows = read_history(path)
    blocks = [name for name in (rows[0] if rows else {}) if name.startswith("p_planned_")]
    if not blocks:
        return None
    table = np.array([[row["epoch"], *(row[name] for name in blocks)] for row in rows], dtype=np.float64)
    return table[:, 0] / epochs, table[:, 1:]

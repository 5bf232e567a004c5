"""A study whose trainings take milliseconds: `python toy_study.py SETTINGS` runs it in the current folder.

A module and not a part of conftest.py, because worker processes import `ToyTrainer` by its name.

Files in the current folder steer it: diverge-N makes trial N diverge, die-N kills the process in trial N, once;
die-always-N each time. trainings.log gets a line for each training that starts or resumes.
"""

import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from iakd import files
from iakd.config import Params, Schedule, merged, parse
from iakd.errors import RunFailed, UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob, plan_experiment
from iakd.processes import Interrupt
from iakd.stages import tune
from iakd.tuning.results import finished_trials, trial_path
from iakd.tuning.workers import OnValidation

KINDS = ("uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic")
PRODUCTS = ("history.csv", "metrics.json")
TIMES = ("seconds", "started", "finished")
BASE: dict[str, Any] = {
    "dataset": {"name": "toy"},
    "teachers": [{"arch": "resnet20", "name": "big"}],
    "students": [{"arch": "resnet8", "name": "small"}],
    "methods": {"iakd-tuned": {"method": "iakd", "iakd": {"schedule": "tuned"}}},
    "distill": {"recipe": {"epochs": 8, "validate_every": 2}},
    "tune": {
        "trials": 10,
        "generation": 4,
        "sampler": {"startup": 5},
        "pruner": {"startup": 3, "warmup": 0.3},
    },
}


def settings(**tune_changes: Any) -> Params:
    """Return the base settings with changes to their section `tune`."""
    return parse(merged(BASE, {"tune": tune_changes}), "test")


def prepare() -> None:
    """Write what a study itself reads of data and teacher to the current folder."""
    files.write_json(Path("results/toy/data/manifest.json"), {"sha256": "d"})
    files.write_json(Path("results/toy/teachers/big/seed0/run.json"), {"model_sha256": "t"})


def run(params: Params) -> Path:
    """Run the study of the only pair in the current folder; its keys ignore source files, which may be edited."""
    experiment = plan_experiment(params)
    with mock.patch("iakd.experiment.jobs.source_sha", lambda *modules: "source"):
        return tune.run(experiment, experiment.studies[0], ToyTrainer)


@dataclass(frozen=True)
class ToyStudy:
    """The study that `folder` has, or will have; it runs in the current folder, which must be the same."""

    folder: Path

    @property
    def results(self) -> Path:
        """Where its results are published."""
        return self.folder / "results/toy/tune/big-small"

    @property
    def state(self) -> Path:
        """Where its live files are."""
        return self.folder / ".state/toy/tune/big-small"

    def run(self, **tune_changes: Any) -> None:
        """Run it, with changes to the section `tune` of the settings."""
        assert Path.cwd() == self.folder
        run(settings(**tune_changes))

    def text(self, **tune_changes: Any) -> str:
        """Return the settings as an argument of this script."""
        return yaml.safe_dump(settings(**tune_changes).model_dump(mode="json", exclude_defaults=True))

    def command(self, **tune_changes: Any) -> list[str]:
        """Return the command that runs it in a process of its own."""
        return [sys.executable, __file__, self.text(**tune_changes)]

    def trained(self) -> list[int]:
        """Return the numbers of the trials whose training started or resumed, in that order."""
        log = self.folder / "trainings.log"
        return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []

    def outcome(self) -> dict[str, Any]:
        """Return all results except times: what must not depend on workers, timing and interruptions."""
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in finished_trials(self.results)]
        files_of_trials = {
            f"{path.parent.name}/{name}": (path.parent / name).read_text()
            for path in sorted(self.results.glob("trials/*/run.json"))
            for name in PRODUCTS
        }
        keys = [files.read_json(path, "")["key"] for path in sorted(self.results.glob("**/run.json"))]
        schedule = (self.results / "schedule.yaml").read_text()
        return {"rows": rows, **files_of_trials, "keys": keys, "schedule": schedule} | {
            name: (self.results / name).read_text() for name in PRODUCTS
        }


class ToyTrainer:
    """Trains nothing: the accuracy after an epoch is a formula of the schedule."""

    checkpoints = True

    def __init__(self, experiment: Experiment, job: StudyJob, key: str) -> None:
        if multiprocessing.parent_process():
            os.fsync = lambda handle: None  # only a power cut, not a kill, would lose what was written
        self.job = job
        self.key = key
        self.recipe = job.recipe

    def run(self, number: int, schedule: Schedule) -> run_dir.Run:
        chosen = schedule.model_dump(mode="json")
        return run_dir.Run(
            path=f"{self.job.path}/{trial_path(number)}",
            stage="trial",
            key=files.digest([self.key, number, chosen]),
            params={"schedule": chosen},
            seed=0,
            about={"trial": number, "study": self.key},
            inputs={},
        )

    def train(
        self, run: run_dir.Run, schedule: Schedule, on_validation: OnValidation
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        assert not run.finished, "trained although its files are published"
        number = run.about["trial"]
        checkpoint = run.live / "checkpoint.json"
        history: list[run_dir.Row] = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
        with Path("trainings.log").open("a") as log:
            log.write(f"{number} {len(history)}\n")
        for row in history:
            if "val_top1" in row:
                on_validation(int(row["epoch"] or 0), row)
        for epoch in range(len(history) + 1, self.recipe.epochs + 1):
            time.sleep(float(os.environ.get("EPOCH_SECONDS", "0")))
            if epoch == 5:
                mishaps(number)
            row = {"epoch": epoch, "loss": 1.0 / epoch}
            if epoch % self.recipe.validate_every == 0:
                row["val_top1"] = self.accuracy(schedule, epoch, self.recipe.epochs)
            history.append(row)
            if self.checkpoints and epoch % 4 == 0:
                files.write_text(checkpoint, json.dumps(history))
            if "val_top1" in row:
                on_validation(epoch, row)
        return history, {"val_top1": history[-1]["val_top1"], "val_nll": math.inf}

    @staticmethod
    def accuracy(schedule: Schedule, epoch: int, epochs: int) -> float:
        """Return what is best for sigmoid with p0 = 0.7 and no slope, and grows sooner for small student_only."""
        final = 80 + 2 * KINDS.index(schedule.kind) % 11 - 10 * (schedule.p0 - 0.7) ** 2 - 3 * abs(schedule.slope)
        return final * (1 - math.exp(-4 * epoch / epochs) * (0.5 + schedule.student_only))


class SavingTrainer(ToyTrainer):
    """Saves its state at a signal before it ends, as real trainings do."""

    def train(
        self, run: run_dir.Run, schedule: Schedule, on_validation: OnValidation
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        with Interrupt() as interrupt:
            on_validation(1, {"epoch": 1, "val_top1": 50.0})
            Path("saved").write_text(interrupt.name)
            raise KeyboardInterrupt(interrupt.name)


def mishaps(number: int) -> None:
    """Let happen to trial `number` what files in the current folder ask for."""
    if Path(f"diverge-{number}").exists():
        raise RunFailed("the loss is no longer finite")
    once = Path(f"die-{number}")
    if once.exists() or Path(f"die-always-{number}").exists():
        once.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if Path(f"mistake-{number}").exists():
        raise UserError("no such thing")
    if Path(f"raise-{number}").exists():
        raise ZeroDivisionError("a bug")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare()
    run(parse(yaml.safe_load(sys.argv[1]), "test"))

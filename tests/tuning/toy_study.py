"""A study whose trainings take milliseconds: `python toy_study.py SETTINGS [--join]` runs or joins it.

It is the study of the current folder.

Each trial trains two seeds.

A module and not a part of conftest.py, because worker processes import `ToyTrainer` by its name.

Files in the current folder steer it: diverge-N makes trial N diverge, die-N kills the process in trial N, once;
die-always-N each time. trainings.log gets a line for each training that starts or resumes: trial, seed, epochs done.
"""

import builtins
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

from iakd import errors, files
from iakd.config import Params, Schedule, merged, parse
from iakd.errors import Diverged, UserError
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
        "seeds": 2,
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


def run(params: Params, join: bool = False) -> Path:
    """Run or join the study of the only pair in the current folder; its keys ignore sources, which may be edited."""
    experiment = plan_experiment(params)
    with mock.patch("iakd.experiment.jobs.source_sha", lambda *modules: "source"):
        return tune.run(experiment, experiment.studies[0], ToyTrainer, join=join)


@dataclass(frozen=True)
class ToyStudy:
    """The study that `folder` has, or will have; it runs in the current folder, which must be the same."""

    folder: Path

    @property
    def results(self) -> Path:
        """Where its results are published."""
        return self.folder / "results/toy/tune/big-small/iakd-tuned"

    @property
    def state(self) -> Path:
        """Where its live files are."""
        return self.folder / ".state/toy/tune/big-small/iakd-tuned"

    def run(self, join: bool = False, **tune_changes: Any) -> None:
        """Run or join it, with changes to the section `tune` of the settings."""
        assert Path.cwd() == self.folder
        run(settings(**tune_changes), join)

    def text(self, **tune_changes: Any) -> str:
        """Return the settings as an argument of this script."""
        return yaml.safe_dump(settings(**tune_changes).model_dump(mode="json", exclude_defaults=True))

    def command(self, join: bool = False, **tune_changes: Any) -> list[str]:
        """Return the command that runs or joins it in a process of its own."""
        return [sys.executable, __file__, self.text(**tune_changes), *(["--join"] if join else [])]

    def started(self) -> list[tuple[int, int]]:
        """Return trial and seed of each training that started or resumed, in that order."""
        log = self.folder / "trainings.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(number), int(seed)) for number, seed, _ in map(str.split, lines)]

    def trained(self) -> list[int]:
        """Return the numbers of the trials whose first seed started or resumed, in that order."""
        return [number for number, seed in self.started() if seed == 0]

    def outcome(self) -> dict[str, Any]:
        """Return all results except times: what must not depend on workers, timing and interruptions."""
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in finished_trials(self.results)]
        files_of_trials = {
            f"{path.parent.relative_to(self.results)}/{name}": (path.parent / name).read_text()
            for path in sorted(self.results.glob("trials/**/run.json"))
            for name in PRODUCTS
        }
        keys = [files.read_json(path, "")["key"] for path in sorted(self.results.glob("**/run.json"))]
        best = (self.results / "best.yaml").read_text()
        return {"rows": rows, **files_of_trials, "keys": keys, "best": best} | {
            name: (self.results / name).read_text() for name in PRODUCTS
        }


class ToyTrainer:
    """Trains nothing: the accuracy after an epoch is a formula of the schedule."""

    checkpoints = True

    def __init__(self, experiment: Experiment, job: StudyJob, key: str) -> None:
        if multiprocessing.parent_process():
            os.fsync = lambda handle: None  # only a power cut, not a kill, would lose what was written
        self.key = key
        self.several_objectives = experiment.params.tune.several_objectives

    def run(self, number: int, job: StudyJob, seed: int) -> run_dir.Run:
        chosen = job.method.settings()
        return run_dir.Run(
            path=f"{job.path}/{trial_path(number)}/seed{seed}",
            stage="trial_seed",
            key=files.digest([self.key, number, chosen, seed]),
            params={"method": chosen},
            seed=seed,
            about={"trial": number, "trial_seed": seed, "study": self.key},
            inputs={},
        )

    def train(
        self, run: run_dir.Run, job: StudyJob, on_validation: OnValidation
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        assert not run.finished, "trained although its files are published"
        number = run.about["trial"]
        checkpoint = run.live / "checkpoint.json"
        history: list[run_dir.Row] = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
        with Path("trainings.log").open("a") as log:
            log.write(f"{number} {run.seed} {len(history)}\n")
        for row in history:
            if "val_top1" in row:
                on_validation(int(row["epoch"] or 0), row)
        for epoch in range(len(history) + 1, job.recipe.epochs + 1):
            time.sleep(float(os.environ.get("EPOCH_SECONDS", "0")))
            if epoch == 5:
                mishaps(number, run.seed)
            row = {"epoch": epoch, "loss": 1.0 / epoch}
            if epoch % job.recipe.validate_every == 0:
                schedule = job.method.iakd.schedule
                assert isinstance(schedule, Schedule)
                row["val_top1"] = self.accuracy(schedule, epoch, job.recipe.epochs) + self.luck(run.seed, number)
                row["val_balanced_accuracy"] = self.balanced(row["val_top1"])
            history.append(row)
            if self.checkpoints and epoch % 4 == 0:
                files.write_text(checkpoint, json.dumps(history))
            if "val_top1" in row:
                on_validation(epoch, row)
        metrics = {"val_top1": history[-1]["val_top1"], "val_nll": math.inf}
        metrics["val_balanced_accuracy"] = self.balanced(metrics["val_top1"])
        if self.several_objectives and run.seed == 0:
            metrics["train_macs"] = self.cost(job.method.iakd.schedule.p0)
        return history, metrics

    @staticmethod
    def accuracy(schedule: Schedule, epoch: int, epochs: int) -> float:
        """Return what is best for sigmoid with p0 = 0.7 and no slope, and grows sooner for small student_only."""
        final = 80 + 2 * KINDS.index(schedule.kind) % 11 - 10 * (schedule.p0 - 0.7) ** 2 - 3 * abs(schedule.slope)
        return final * (1 - math.exp(-4 * epoch / epochs) * (0.5 + schedule.student_only))

    @staticmethod
    def balanced(top1: float) -> float:
        """Return a balanced accuracy that is lower, the higher the accuracy is."""
        return 100 - top1 / 2

    @staticmethod
    def cost(p0: float) -> int:
        """Return the multiply–adds of a training."""
        return round(1000 * p0)

    @staticmethod
    def luck(seed: int, number: int) -> float:
        """Return how much better a seed of trial `number` is than the formula."""
        return 0.5 * seed


class Unpicklable(Exception):
    """An error that cannot be sent to another process."""

    def __reduce__(self) -> str:
        raise TypeError("cannot be pickled")


class SavingTrainer(ToyTrainer):
    """Saves its state at a signal before it ends, as real trainings do."""

    def train(
        self, run: run_dir.Run, job: StudyJob, on_validation: OnValidation
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        with Interrupt() as interrupt:
            on_validation(1, {"epoch": 1, "val_top1": 50.0})
            Path("saved").write_text(interrupt.name)
            raise KeyboardInterrupt(interrupt.name)


def mishaps(number: int, seed: int) -> None:
    """Let happen to trial `number` what files in the current folder ask for, in its first seed or in that named."""
    if seed:
        once = Path(f"die-{number}-seed{seed}")
        if once.exists():
            once.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if Path(f"diverge-{number}-seed{seed}").exists():
            raise Diverged("the loss is no longer finite")
        return
    if Path(f"diverge-{number}").exists():
        raise Diverged("the loss is no longer finite")
    once = Path(f"die-{number}")
    if once.exists() or Path(f"die-always-{number}").exists():
        once.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if Path(f"mistake-{number}").exists():
        raise UserError("no such thing")
    raised = Path(f"raise-{number}")
    if raised.exists():
        name, message = raised.read_text().split(": ", 1)
        kind: type[Exception] = getattr(errors, name, None) or getattr(builtins, name, None) or Unpicklable
        raise kind(message)


if __name__ == "__main__":
    from toy_study import prepare, run  # the worker processes know the trainer by this module's name

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare()
    run(parse(yaml.safe_load(sys.argv[1]), "test"), join="--join" in sys.argv)

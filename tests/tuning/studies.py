"""A study whose trainings take milliseconds: `python studies.py SETTINGS` runs it in the current folder.

Files in that folder steer it: diverge-N makes trial N diverge, die-N kills the process at trial N, once; die-always-N
each time. trainings.log gets a line for each training that begins or goes on.
"""

import json
import logging
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import yaml

from iakd import files
from iakd.config import Params, Schedule, merged, parse
from iakd.errors import RunFailed, UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob, plan_experiment
from iakd.stages import tune
from iakd.tuning.decisions import Search, propose
from iakd.tuning.results import finished_trials, trial_path
from iakd.tuning.shared_study import SharedStudy
from iakd.tuning.trial import OnValidation, carry_out

KINDS = ("uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic")
PAIR = "toy/tune/big-small"
RESULTS, STATE = Path("results") / PAIR, Path(".state") / PAIR
PRODUCTS = ("history.csv", "metrics.json")
SAME_SOURCE = mock.patch("iakd.experiment.jobs.source_sha", lambda *modules: "source")  # whoever edits files meanwhile
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
    """The base settings with changes to their section `tune`."""
    return parse(merged(BASE, {"tune": tune_changes}), "test")


def as_text(params: Params) -> str:
    """Settings as an argument of this script."""
    return yaml.safe_dump(params.model_dump(mode="json", exclude_defaults=True))


def prepare() -> None:
    """Data and teacher, as far as a study looks at them by itself."""
    files.write_json(Path("results/toy/data/manifest.json"), {"sha256": "d"})
    files.write_json(Path("results/toy/teachers/big/seed0/run.json"), {"model_sha256": "t"})


def run(params: Params) -> Path:
    """The study of the only pair."""
    experiment = plan_experiment(params)
    with mock.patch.object(tune, "StudentTrainer", Trainer), SAME_SOURCE:
        return tune.run(experiment, experiment.studies[0])


class Trainer:
    """Pretends: the accuracy of an epoch is a formula of the schedule."""

    checkpoints = True

    def __init__(self, experiment: Experiment, job: StudyJob, key: str) -> None:
        if multiprocessing.parent_process():
            os.fsync = lambda handle: None  # a killed process loses nothing that it wrote, only a power cut would
        self.job = job
        self.key = key
        self.recipe = job.recipe

    def run(self, number: int, schedule: Schedule) -> run_dir.Run:
        settings = schedule.model_dump(mode="json")
        return run_dir.Run(
            path=f"{self.job.path}/{trial_path(number)}",
            stage="trial",
            key=files.digest([self.key, number, settings]),
            params={"schedule": settings},
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
                self._mishaps(number)
            row = {"epoch": epoch, "loss": 1.0 / epoch}
            if epoch % self.recipe.validate_every == 0:
                row["val_top1"] = accuracy(schedule, epoch, self.recipe.epochs)
            history.append(row)
            if self.checkpoints and epoch % 4 == 0:
                files.write_text(checkpoint, json.dumps(history))
            if "val_top1" in row:
                on_validation(epoch, row)
        return history, {"val_top1": history[-1]["val_top1"], "val_nll": math.inf}

    def _mishaps(self, number: int) -> None:
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


def accuracy(schedule: Schedule, epoch: int, epochs: int) -> float:
    """Best for sigmoid with p0 = 0.7 and no slope; grows over the epochs, sooner for a small student_only part."""
    final = 80 + 2 * KINDS.index(schedule.kind) % 11 - 10 * (schedule.p0 - 0.7) ** 2 - 3 * abs(schedule.slope)
    return final * (1 - math.exp(-4 * epoch / epochs) * (0.5 + schedule.student_only))


def inline(params: Params, order: random.Random | None = None) -> SharedStudy:
    """The study without processes, in the current folder; the trials of a generation end in random order."""
    job = plan_experiment(params).studies[0]
    search = Search(params.tune, job.recipe, job.first)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="inline", direction="maximize", storage=storage)
    study = SharedStudy(storage, "inline")
    trainer = Trainer(plan_experiment(params), job, "key")
    trainer.checkpoints = False
    for start in range(0, params.tune.trials, params.tune.generation):
        numbers = list(range(start, min(start + params.tune.generation, params.tune.trials)))
        for number in numbers:
            study.enqueue(*propose(search, study.records(), number))
        if order:
            order.shuffle(numbers)
        for number in numbers:
            carry_out(search, study, trainer, number)
    return study


def outcome(folder: Path = RESULTS) -> dict[str, Any]:
    """All of a study's results but times: what must not depend on workers, timing and interruptions."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in finished_trials(folder)]
    files_of_trials = {
        f"{path.parent.name}/{name}": (path.parent / name).read_text()
        for path in sorted(folder.glob("trials/*/run.json"))
        for name in PRODUCTS
    }
    keys = [files.read_json(path, "")["key"] for path in sorted(folder.glob("**/run.json"))]
    schedule = (folder / "schedule.yaml").read_text()
    return {"rows": rows, **files_of_trials, "keys": keys, "schedule": schedule} | {
        name: (folder / name).read_text() for name in PRODUCTS
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare()
    run(parse(yaml.safe_load(sys.argv[1]), "test"))

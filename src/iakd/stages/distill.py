"""Train students: reads the data and their teachers, writes results/<dataset>/students/<pair>/<method>/seed<k>/."""

import contextlib
import logging
from functools import partial
from pathlib import Path

from iakd import models
from iakd.data.store import PreparedData
from iakd.distillation.assembly import StudentTask, Trained, student_run, train_students
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob
from iakd.training.distributed import training_processes
from iakd.tuning.results import with_found_settings

log = logging.getLogger(__name__)


def run(experiment: Experiment, *jobs: StudentJob) -> list[Path]:
    """Train students side by side, except those whose very training is finished, and return their folders.

    If one fails, the others are trained to the end before its error is raised. All keep their checkpoints until all are
    published, so that no training is lost to a workflow engine that deletes the outputs of a failed or killed job.
    """
    several = training_processes()
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    tasks: list[StudentTask] = []
    for job in jobs:
        found = with_found_settings(job)
        attempt = student_run(experiment, found, job.path, job.seed, store)
        if not several.on_main(partial(_is_finished, attempt)):
            tasks.append(StudentTask(attempt, found))
    if not tasks:
        return [job.folder for job in jobs]
    with contextlib.ExitStack() as opened:
        for task in tasks:
            opened.enter_context(several.open_run(task.run))
        failures = []
        for task, trained in zip(tasks, train_students(experiment, tasks, store), strict=True):
            if isinstance(trained, Exception):
                failures.append(trained)
            else:
                several.on_main(partial(_publish, task.run, trained))
        if failures:
            raise failures[0]
        for task in tasks:
            several.on_main(task.run.clear_live)
    return [job.folder for job in jobs]


def _is_finished(attempt: run_dir.Run) -> bool:
    if attempt.finished:
        log.info("%s: already trained", attempt.folder)
        attempt.clear_live()
    return attempt.finished


def _publish(attempt: run_dir.Run, trained: Trained) -> None:
    peer = models.save_weights(trained.peer) if trained.peer else None
    attempt.publish(trained.history, trained.metrics, models.save_weights(trained.network), peer)

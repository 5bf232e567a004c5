"""Train students: reads the data and their teachers, writes results/<dataset>/students/<pair>/<method>/seed<k>/."""

import contextlib
import logging
from functools import partial
from pathlib import Path

from iakd import models, runs
from iakd.data.store import Store
from iakd.params import Schedule
from iakd.plan import Plan, StudentJob
from iakd.students import Task, Trained, student_run, train_students
from iakd.training.parallel import processes
from iakd.tuning.winner import read_schedule

log = logging.getLogger(__name__)


def run(plan: Plan, *jobs: StudentJob) -> list[Path]:
    """Train students side by side, leaving alone those whose very training is already finished. Returns their folders.

    Where one fails, the others go on to their end; then its error is raised. All keep what they need to go on until
    all have been published: a workflow engine that deletes what a failed or killed job has made costs no training.
    """
    several = processes()
    store = Store.open(plan.data.folder, settings=plan.data.settings)
    tasks: list[Task] = []
    for job in jobs:
        schedule = _schedule(job)
        attempt = student_run(plan, job, job.path, job.label, job.seed, schedule, store)
        if not several.lead(partial(_is_finished, attempt)):
            tasks.append(Task(attempt, job, schedule))
    if not tasks:
        return [job.folder for job in jobs]
    with contextlib.ExitStack() as opened:
        for task in tasks:
            opened.enter_context(several.opened(task.attempt))
        failures = []
        for task, trained in zip(tasks, train_students(plan, tasks, store), strict=True):
            if isinstance(trained, Exception):
                failures.append(trained)
            else:
                several.lead(partial(_publish, task.attempt, trained))
        if failures:
            raise failures[0]
        for task in tasks:
            several.lead(task.attempt.clear_live)
    return [job.folder for job in jobs]


def _is_finished(attempt: runs.Run) -> bool:
    if attempt.finished:
        log.info("%s: already trained", attempt.folder)
        attempt.clear_live()
    return attempt.finished


def _publish(attempt: runs.Run, trained: Trained) -> None:
    history, metrics, student = trained
    attempt.publish(history, metrics, models.save_weights(student))


def _schedule(job: StudentJob) -> Schedule | None:
    if job.study:
        return read_schedule(job.study.folder)
    given = job.method.iakd.schedule
    return given if isinstance(given, Schedule) and "iakd" in job.method.parts else None

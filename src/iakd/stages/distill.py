"""Train a student: reads the data and its teacher, writes results/<dataset>/students/<pair>/<method>/seed<k>/."""

import logging
from pathlib import Path

from iakd import models
from iakd.data.store import Store
from iakd.params import Schedule
from iakd.plan import Plan, StudentJob
from iakd.students import student_run, train_student
from iakd.tuning.winner import read_schedule

log = logging.getLogger(__name__)


def run(plan: Plan, job: StudentJob) -> Path:
    """Train one student, or leave it alone if this very training is already finished. Returns its folder."""
    store = Store.open(plan.data.folder, settings=plan.data.settings)
    schedule: Schedule | None = None
    if job.study:
        schedule = read_schedule(job.study.folder)
    elif isinstance(job.method.iakd.schedule, Schedule) and "iakd" in job.method.parts:
        schedule = job.method.iakd.schedule
    attempt = student_run(plan, job, job.path, job.label, job.seed, schedule, store)
    if attempt.finished:
        log.info("%s: already trained", job.folder)
        return job.folder
    with attempt.open():
        history, metrics, student = train_student(attempt, plan, job, schedule, store)
        return attempt.finish(history, metrics, models.save_weights(student))

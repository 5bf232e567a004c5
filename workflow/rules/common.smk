"""What all rules share: the plan made from the settings, and every function."""

import atexit
import re
import shlex
import sys

from iakd import adoption, devices, warm
from iakd import workflow as engine
from iakd.adoption import EVALUATION
from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.files import digest
from iakd.plan import RESULTS, STATE
from iakd.provenance import source_sha
from iakd.runs import HISTORY, METRICS, MODEL, RUN
from iakd.tracking import launch as tracking
from iakd.tuning.products import SCHEDULE, TRIALS

try:
    PLAN = engine.set_up(
        config,
        workflow.config_settings.overwrite_config,
        workflow.overwrite_configfiles or workflow.configfiles,
        workflow.is_main_process,
    )
except UserError as error:
    engine.stop(error)

JOBS = {job.path: job for job in (*PLAN.teachers, *PLAN.studies, *PLAN.students)}
COMPARISON = ("metrics.json", "summary.csv", "runs.csv", "accuracy.csv", "curves.csv")
FIGURES = ("accuracy", "curves", "swaps", "hints", "tuning", "calibration", "confusion")
REPORT = PLAN.report / "report.html"
GPU = int(PLAN.params.compute.device == "cuda" or bool(devices.gpus(PLAN.params.compute)))
THREADS = PLAN.params.compute.threads


def one_of(jobs):
    """A wildcard constraint: the path of one of these jobs, or nothing at all."""
    return "|".join(re.escape(job.path) for job in jobs) or "(?!)"


def files_of(jobs, *names):
    """The files called `names` in the results of `jobs`."""
    return [job.folder / name for job in jobs for name in names]


def key(module, settings):
    """Identity of work that is no job of the plan: its settings and the sources of the module that does it."""
    return digest({"settings": settings, "source": source_sha(f"iakd.{module}")})


def teacher_options(wildcards):
    job = JOBS[wildcards.teacher]
    return f"--teacher {job.network.name} --seed {job.seed}"


def teacher_files(wildcards):
    """The file that an imported teacher comes from."""
    path = JOBS[wildcards.teacher].network.path
    return [path] if path else []


def study_options(wildcards):
    job = JOBS[wildcards.study]
    return f"--pair {job.teacher.network.name}-{job.student.name}"


def student_options(wildcards):
    job = JOBS[wildcards.student]
    return f"--pair {job.teacher.network.name}-{job.student.name} --method {shlex.quote(job.label)} --seed {job.seed}"


def student_inputs(wildcards):
    """What the training of a student reads besides the data: its teacher and its schedule, where it uses them."""
    job = JOBS[wildcards.student]
    return {
        "teacher": files_of([job.teacher], MODEL) if job.method.needs_teacher else [],
        "schedule": files_of([job.study], SCHEDULE) if job.study else [],
    }


def start():
    """Before the first job: be alone here, and never declare results current that are not."""
    try:
        engine.take_lock()
        if workflow.touch:
            adoption.refuse(adoption.other_settings(PLAN))
        elif sum(job.rule.name in warm.COMMANDS for job in workflow.dag.needrun_jobs()) > 1:
            warm.start(STATE / "warm.socket")
    except UserError as error:
        engine.stop(error)


def finish(succeeded):
    """After the last job: bring MLflow up to date, and end with a line on what failed, or where the report is."""
    reported = any(job.rule.name == "report" for job in workflow.dag.jobs)
    if workflow.touch or (succeeded and not reported):  # a link of the chain: whoever goes on finishes this, too
        return
    tracking.finish(PLAN.params)
    failed = getattr(workflow.scheduler, "failed", ())
    lines = [f"The report: {REPORT}"] if succeeded else sorted(engine.last_line(job.log) for job in failed)
    atexit.register(print, *lines, sep="\n", file=sys.stderr)  # after Snakemake's own last lines

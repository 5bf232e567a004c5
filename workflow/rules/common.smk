"""What all rules share: the experiment made from the settings, and every function."""

import atexit
import re
import shlex
import sys
from functools import partial
from pathlib import Path

from iakd.orchestration import stale_results, fork_server
from iakd.experiment import gpus
from iakd.orchestration import snakemake_hooks as engine
from iakd.orchestration.stale_results import EVALUATION
from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.files import digest
from iakd.experiment.jobs import RESULTS, STATE
from iakd.experiment.provenance import source_sha
from iakd.experiment.run_dir import HISTORY, METRICS, MODEL, RUN
from iakd.tracking.follower import wait_for_follower
from iakd.tuning.results import SCHEDULE, TRIALS

try:
    EXPERIMENT = engine.set_up(
        config,
        workflow.config_settings.overwrite_config,
        workflow.overwrite_configfiles or workflow.configfiles,
        workflow.is_main_process,
    )
except UserError as error:
    engine.stop(error)

JOBS = {job.path: job for job in (*EXPERIMENT.teachers, *EXPERIMENT.studies, *EXPERIMENT.students)}
COMPARISON = ("metrics.json", "summary.csv", "runs.csv", "accuracy.csv", "curves.csv")
FIGURES = ("accuracy", "curves", "swaps", "hints", "tuning", "calibration", "confusion")
REPORT = EXPERIMENT.report / "report.html"
GPU = int(EXPERIMENT.params.compute.device == "cuda" or bool(gpus.gpus(EXPERIMENT.params.compute)))
THREADS = EXPERIMENT.params.compute.threads
PROCESSES = EXPERIMENT.params.compute.processes  # of a training


def one_of(jobs):
    """A wildcard constraint: the path of one of these jobs, or nothing at all."""
    return "|".join(re.escape(job.path) for job in jobs) or "(?!)"


def one_of_students():
    """The same for students without their seeds."""
    return "|".join(dict.fromkeys(re.escape(str(Path(job.path).parent)) for job in EXPERIMENT.students)) or "(?!)"


def files_of(jobs, *names):
    """The files called `names` in the results of `jobs`."""
    return [job.folder / name for job in jobs for name in names]


def key(module, settings):
    """Identity of work that is no job of the experiment: its settings and the sources of the module that does it."""
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


def folders_of_students():
    """The results of a job, below results/, for each rule that trains students.

    Seeds are the same for all students, so a rule is enough for the first few of all of them, and one for the next.
    """
    seeds, size = EXPERIMENT.params.distill.seeds, EXPERIMENT.params.compute.seeds_together
    if size == 1:
        return [["{student}/seed{seed}"]]
    return [[f"{{student}}/seed{seed}" for seed in seeds[i : i + size]] for i in range(0, len(seeds), size)]


def students_in(folders, wildcards):
    return [JOBS[folder.format(**wildcards)] for folder in folders]


def student_files(folders, name):
    return [RESULTS / folder / name for folder in folders]


def student_inputs(folders, wildcards):
    """What the training of students reads besides the data: teachers and schedules, where they use them."""
    jobs = students_in(folders, wildcards)
    teachers = {job.teacher.path: job.teacher for job in jobs if job.method.needs_teacher}
    studies = {job.study.path: job.study for job in jobs if job.study}
    return {"teacher": files_of(teachers.values(), MODEL), "schedule": files_of(studies.values(), SCHEDULE)}


def student_keys(folders, wildcards):
    return sorted({job.watched_key for job in students_in(folders, wildcards)})


def student_options(wildcards, output):
    """Taken from `output`, so that Snakemake sees no change in another grouping of seeds."""
    jobs = [JOBS[str(Path(path).parent.relative_to(RESULTS))] for path in output.model]
    pair = f"{jobs[0].teacher.network.name}-{jobs[0].student.name}"
    seeds = " ".join(f"--seed {job.seed}" for job in jobs)
    return f"--pair {pair} --method {shlex.quote(jobs[0].label)} {seeds}"


def start():
    """Before the first job: be alone here, and never declare results current that are not."""
    try:
        engine.take_lock()
        if workflow.touch:
            stale_results.refuse(stale_results.other_settings(EXPERIMENT))
        elif sum(job.rule.name.split("_")[0] in fork_server.COMMANDS for job in workflow.dag.needrun_jobs()) > 1:
            fork_server.start(STATE / "warm.socket")
    except UserError as error:
        engine.stop(error)


def finish(succeeded):
    """After the last job: bring MLflow up to date, and end with a line on what failed, or where the report is."""
    reported = any(job.rule.name == "report" for job in workflow.dag.jobs)
    if workflow.touch or (succeeded and not reported):  # a link of the chain: whoever goes on finishes this, too
        return
    wait_for_follower(EXPERIMENT.params)
    failed = getattr(workflow.scheduler, "failed", ())
    lines = [f"The report: {REPORT}"] if succeeded else sorted(engine.last_line(job.log) for job in failed)
    atexit.register(print, *lines, sep="\n", file=sys.stderr)  # after Snakemake's own last lines

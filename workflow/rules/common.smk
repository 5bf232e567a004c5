"""What all rules share: the experiment made from the settings, and all functions."""

import atexit
import os
import re
import shlex
import sys
from functools import cache, partial
from inspect import signature
from pathlib import Path

from snakemake.common import overwrite_function_params
from snakemake.settings.types import DeploymentMethod

from iakd import files, slurm
from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.evaluation import made_from
from iakd.experiment import gpus
from iakd.experiment import run_dir as names
from iakd.experiment.jobs import RESULTS, group_seeds
from iakd.experiment.provenance import source_sha
from iakd.experiment.run_dir import BEST, EVALUATION, HISTORY, METRICS, MODEL, RUN, TRIALS
from iakd.orchestration import fork_server, run_view, stale_results
from iakd.orchestration import snakemake_hooks as hooks
from iakd.tracking.follower import ensure_follower, wait_for_follower

hooks.ignore_damaged_records()
IN_MODULE = workflow.modifier.parent_modifier is not None  # of another workflow, which hands over the settings
try:
    if workflow.modifier.path_modifier.prefix or workflow.modifier.path_modifier.modifies_prefixes:
        raise UserError("a module's prefix does not change where results are: leave it out")
    files.refuse_braces(Path(workflow.main_snakefile).parent)
    EXPERIMENT = hooks.set_up(
        [] if IN_MODULE else workflow.overwrite_configfiles or [Path("params.yaml")],
        config if IN_MODULE else workflow.config_settings.config,
        workflow.is_main_process and not workflow.storage_settings.default_storage_provider,
        workflow.remote_exec,
    )
except (UserError, OSError) as error:
    hooks.stop(error)
hooks.accept_clocks_set_back()
hooks.accept_by_content(EXPERIMENT)
run_view.connect(workflow, EXPERIMENT)

STORAGE = workflow.storage_settings.default_storage_provider is not None  # results are kept there, not in this folder
DEPLOYMENT = workflow.deployment_settings.deployment_method  # of --sdm
IMAGE = "iakd.sif"
TRIAL_FOLDERS = "trials"
FILES_OF_STUDY = (names.JOURNAL, TRIAL_FOLDERS) if STORAGE else ()  # that a report reads, besides its declared ones
FOLDER_OF_MODEL = f"{RESULTS}/{{wildcards.model}}" if STORAGE else "$(dirname {input.model})"
try:
    COPIES = hooks.link_results(workflow.storage_settings, workflow.storage_registry.default_storage_provider)
    if DeploymentMethod.APPTAINER in DEPLOYMENT:
        hooks.check_image(Path(IMAGE))
except UserError as error:
    hooks.stop(error)

JOBS = {job.path: job for job in (EXPERIMENT.data, *EXPERIMENT.studies, *EXPERIMENT.trained, *EXPERIMENT.exports)}
COMPARISON = (METRICS, names.HEADLINE, names.SUMMARY, names.RUNS, names.ACCURACY, names.CURVES, names.SWAPPING)
FIGURES = ("accuracy", "added", "curves", "swaps", "hints", "tuning", "calibration", "confusion")
FIGURES += ("pareto",) if EXPERIMENT.exports else ()
REPORT = EXPERIMENT.report / names.REPORT
LATENCY = EXPERIMENT.export_folder / names.LATENCY
THREADS = EXPERIMENT.params.compute.threads
PROCESSES = EXPERIMENT.params.compute.processes  # per training
ALL_CORES = workflow.cores or THREADS  # of this machine; None on a cluster


def elsewhere():
    """Whether jobs run on other machines than the one that reads the rules, or this is such a job itself."""
    return workflow.remote_exec or workflow.non_local_exec


def on_slurm():
    """Whether Slurm runs the jobs. Only known once the rules are read."""
    if workflow.is_main_process:
        return workflow.non_local_exec and workflow.executor_plugin.name == "slurm"
    return workflow.remote_exec and slurm.JOB in os.environ


def tasks_of_study(wildcards):
    """Slurm's tasks of a study: one for each worker, on as many nodes as that takes."""
    return EXPERIMENT.params.tune.workers if on_slurm() else 1


def threads_of_study(wildcards):
    """Of a task."""
    return THREADS * EXPERIMENT.params.tune.workers // tasks_of_study(wildcards)


def gpu(wildcards):
    """The GPUs of a process that trains. A machine that only submits jobs knows nothing about those of the others."""
    compute = EXPERIMENT.params.compute
    return int(compute.device == "cuda" or not elsewhere() and bool(gpus.gpus(compute)))


def gpus_of_training(wildcards):
    return gpu(wildcards) * PROCESSES


def one_of(jobs):
    """A wildcard constraint that matches the path of one of these jobs, or nothing."""
    return "|".join(re.escape(job.path) for job in jobs) or "(?!)"


def one_of_students(jobs):
    """The same for students, without their seeds."""
    return "|".join(dict.fromkeys(re.escape(str(Path(job.path).parent)) for job in jobs)) or "(?!)"


def files_of(jobs, *names):
    """The files called `names` in the results of `jobs`."""
    return [job.folder / name for job in jobs for name in names]


def trained(jobs):
    """What a job needs of the models that `jobs` have trained. In this folder, their records are beside them."""
    return files_of(jobs, *((MODEL, RUN) if STORAGE else (MODEL,)))


def compared(jobs):
    """What a job that compares models reads of them besides its declared inputs: in a storage, all is declared."""
    return [*files_of(jobs, MODEL, HISTORY, METRICS, RUN), *prepared()] if STORAGE else []


def prepared():
    """What a job needs of the prepared data, likewise."""
    return rules.prepare.output if STORAGE else rules.prepare.output.manifest


def settings(section, module):
    """The parameters of rules without jobs of their own: the settings of a section, and the sources of a module."""
    texts = made_from.watched(EXPERIMENT, section, module)
    return [literally(text) if "{" in text else text for text in texts]


def literally(text):
    """A function, in whose result Snakemake looks for no wildcards."""
    return lambda wildcards: text


@cache
def watched(paths):
    """What the jobs at `paths` depend on together, as texts."""
    return tuple(dict.fromkeys(text for path in paths for text in JOBS[path].watched))


def settings_of(jobs, *patterns):
    """The parameters of a rule, one for each setting, so that `snakemake -n` names those that changed.

    `jobs` are all that the rule may run; `patterns` are the paths, with wildcards, of those that it runs at once.
    """
    if not jobs:
        return []
    every = [set(watched((job.path,))) for job in jobs]
    shared = {text for text in set.intersection(*every) if "{" not in text}
    folders = {}
    for job, texts in zip(jobs, every):
        folders.setdefault(Path(job.path).parent, set()).update(texts - shared)

    size = max(map(len, folders.values()))

    @cache
    def others(**wildcards):
        texts = watched(tuple(pattern.format(**wildcards) for pattern in patterns))
        found = [text for text in texts if text not in shared]
        # Snakemake compares sets: a repetition changes nothing, and a rule's jobs must have equally many.
        return found + [texts[0]] * (size - len(found))

    def parameter(position):
        def text(wildcards):
            return others(**wildcards)[position]

        overwrite_function_params(text, signature(text).parameters)  # which Snakemake otherwise reads for each job
        return text

    return [*sorted(shared), *map(parameter, range(size))]


def teacher_options(wildcards):
    job = JOBS[wildcards.teacher]
    return f"--teacher {job.network.name} --seed {job.seed}"


def study_teacher(wildcards):
    job = JOBS[wildcards.study]
    return trained([job.teacher] if job.method.needs_teacher else [])


def study_options(wildcards):
    job = JOBS[wildcards.study]
    return f"--pair {job.teacher.network.name}-{job.student.name} --method {shlex.quote(job.label)}"


def folders_of_students():
    """For all rules that train students: the paths, below results/, of those that one job trains, and all it may train.

    One rule trains the first few seeds of each student, the next rule the next few; or others where a method has fewer.
    """
    size = EXPERIMENT.params.compute.seeds_together
    if size == 1:
        return [(["{student}/seed{seed}"], EXPERIMENT.students)]
    rules = {}
    for group in group_seeds(EXPERIMENT.students, size):
        rules.setdefault(tuple(f"{{student}}/seed{job.seed}" for job in group), []).extend(group)
    return [(list(folders), jobs) for folders, jobs in rules.items()]


def students_in(folders, wildcards):
    return [JOBS[folder.format(**wildcards)] for folder in folders]


def student_files(folders, name):
    return [RESULTS / folder / name for folder in folders]


def student_inputs(folders, wildcards):
    """The teachers and found settings that the training of students reads."""
    jobs = students_in(folders, wildcards)
    teachers = {job.teacher.path: job.teacher for job in jobs if job.method.needs_teacher}
    studies = {job.study.path: job.study for job in jobs if job.study}
    return {"teacher": trained(teachers.values()), "best": files_of(studies.values(), BEST)}


def student_options(wildcards, output):
    """Made from `output`, so that to Snakemake another grouping of seeds is not a change."""
    jobs = [JOBS[str(Path(path).parent.relative_to(COPIES))] for path in output.model]
    pair = f"{jobs[0].teacher.network.name}-{jobs[0].student.name}"
    seeds = " ".join(f"--seed {job.seed}" for job in jobs)
    return f"--pair {pair} --method {shlex.quote(jobs[0].label)} {seeds}"


def export_students(wildcards):
    students = JOBS[wildcards.export].students
    return files_of(students, MODEL, METRICS, RUN, EVALUATION) + compared(students)


def export_teachers(wildcards):
    teachers = {job.teacher.path: job.teacher for job in JOBS[wildcards.export].students}
    return files_of(teachers.values(), EVALUATION) + compared(teachers.values())


def export_options(wildcards):
    return f"--pair {JOBS[wildcards.export].pair}"


def start():
    """Before the first job: lock this folder, and never declare stale results current."""
    hooks.limit_no_rate(workflow)
    try:
        hooks.take_lock()
        hooks.check_folders(workflow.dag.needrun_jobs())
        if workflow.touch:
            stale_results.refuse(stale_results.other_settings(EXPERIMENT))
        elif elsewhere():
            if on_slurm():
                cancel_jobs_of_killed_workflow()
            ensure_follower(EXPERIMENT.params)  # here, since jobs on other machines start none
        elif (
            not DEPLOYMENT
            and sum(job.rule.name.split("_")[0] in fork_server.COMMANDS for job in workflow.dag.needrun_jobs()) > 1
        ):
            hooks.start_fork_server()
            ensure_follower(EXPERIMENT.params)  # before a training does: it stays until the report is written
        run_view.plan()
    except (UserError, OSError) as error:
        hooks.stop(error)


def cancel_jobs_of_killed_workflow():
    """Jobs that were submitted and are to run again would write the same files; they resume from their checkpoints."""
    submitted = {id for job in workflow.dag.needrun_jobs() for id in workflow.persistence.external_jobids(job)}
    slurm.cancel(submitted)


def finish(succeeded):
    """After the last job: bring MLflow up to date, then print what failed, or the outcome and where the report is."""
    reported = any(job.rule.name == "report" for job in workflow.dag.jobs)
    if workflow.touch or (succeeded and not reported):  # a part of the workflow: the next part does this
        return
    wait_for_follower(EXPERIMENT.params)
    failed = getattr(workflow.scheduler, "failed", ())
    lines = run_view.outcome(EXPERIMENT) if succeeded else sorted(hooks.last_line(job.log) for job in failed)
    others = hooks.report_on_the_others(EXPERIMENT, (path for job in failed for path in job.output))
    if others:
        lines.append(f"For a report on the other methods, add {others}")
    # After Snakemake's own output, when stderr is no longer that of the view.
    atexit.register(lambda: print(*lines, sep="\n", file=sys.stderr))

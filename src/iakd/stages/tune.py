"""Search for a method's best settings: reads data and teacher, writes results/<dataset>/tune/<pair>/<label>/."""

import logging
from pathlib import Path

from iakd import files
from iakd.data.store import MANIFEST
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.files import digest
from iakd.tuning.results import up_to_date
from iakd.tuning.workers import StudentTrainer, TrialTrainer

log = logging.getLogger(__name__)


def run(
    experiment: Experiment,
    job: StudyJob,
    trainer: type[TrialTrainer] = StudentTrainer,
    workers: int | None = None,
    join: bool = False,
) -> Path:
    """Run the study of one method, unless its results are up to date; return the path of best.yaml.

    Every worker process creates a `trainer`, which trains the trials; there are `workers` of them, by default
    tune.workers. With `join`, only train trials of a study that another process runs.
    """
    tune = experiment.params.tune
    study = _study_run(experiment, job)
    if up_to_date(study, tune.trials):
        log.info("%s: already tuned", job.folder)
        return job.folder / run_dir.BEST
    if join:
        from iakd.tuning.joining import join_study  # imports Optuna

        join_study(experiment, job, study, trainer)
        return job.folder / run_dir.BEST
    from iakd.tuning.study import run_study  # imports Optuna

    return run_study(experiment, job, study, trainer, workers or tune.workers)


def _study_run(experiment: Experiment, job: StudyJob) -> run_dir.Run:
    manifest = files.read_object(experiment.data.folder / MANIFEST, "run `iakd prepare` first", "sha256")
    inputs = {"data": manifest["sha256"]}
    if job.method.needs_teacher:
        teacher = files.read_object(job.teacher.folder / run_dir.RUN, "run `iakd teach` first", "model_sha256")
        inputs["teacher"] = teacher["model_sha256"]
    return run_dir.Run(
        path=job.path,
        stage=job.stage,
        key=digest([job.key, inputs]),
        params=job.settings,
        seed=experiment.params.tune.seed,
        about={
            "dataset": experiment.params.dataset.name,
            "teacher": job.teacher.network.name,
            "student": job.student.name,
            "method": job.label,
        },
        inputs=inputs,
    )

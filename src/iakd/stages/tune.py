"""Search for a pair's best schedule: reads data and teacher, writes results/<dataset>/tune/<pair>/."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iakd import files
from iakd.config import Schedule
from iakd.data.store import MANIFEST, PreparedData
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.files import digest
from iakd.tuning.results import SCHEDULE, trial_path, up_to_date

if TYPE_CHECKING:
    from iakd.tuning.trial import OnValidation

SEEDS_OF_STUDENTS = 2**31  # params.Seed lies below: no student that is reported shares its seed with a trial

log = logging.getLogger(__name__)


def run(experiment: Experiment, job: StudyJob) -> Path:
    """Bring the study of one pair to its end, if it is not there yet. Returns the path of schedule.yaml."""
    tune = experiment.params.tune
    study = _study_run(experiment, job)
    if up_to_date(study, tune.trials):
        log.info("%s: already tuned", job.folder)
        return job.folder / SCHEDULE
    from iakd.tuning.run_study import run_study  # imports Optuna

    return run_study(experiment, job, study, StudentTrainer)


def _study_run(experiment: Experiment, job: StudyJob) -> run_dir.Run:
    manifest = files.read_json(experiment.data.folder / MANIFEST, "run `iakd prepare` first")
    teacher = files.read_json(job.teacher.folder / run_dir.RUN, "run `iakd teach` first")
    inputs = {"data": manifest["sha256"], "teacher": teacher["model_sha256"]}
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
            "method": _label(experiment),
        },
        inputs=inputs,
    )


def _label(experiment: Experiment) -> str:
    """The method whose settings the study keeps: the first one with a tuned schedule."""
    return next(label for label, method in experiment.params.methods.items() if method.tuned)


class StudentTrainer:
    """Trains the students of a study; all of them start from the same weights and see the same batches."""

    def __init__(self, experiment: Experiment, job: StudyJob, key: str) -> None:
        self.experiment = experiment
        self.job = job
        self.key = key
        self.store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)

    def run(self, number: int, schedule: Schedule) -> run_dir.Run:
        """The run of trial `number`."""
        from iakd.distillation.assembly import student_run

        path = f"{self.job.path}/{trial_path(number)}"
        seed = SEEDS_OF_STUDENTS + self.experiment.params.tune.seed
        return student_run(
            self.experiment,
            self.job,
            path,
            _label(self.experiment),
            seed,
            schedule,
            self.store,
            trial=number,
            study=self.key,
        )

    def train(
        self, run: run_dir.Run, schedule: Schedule, on_validation: "OnValidation"
    ) -> tuple[list[run_dir.Row], dict[str, Any]]:
        """Train to the end; history and metrics."""
        from iakd.distillation.assembly import StudentTask, train_student

        task = StudentTask(run, self.job, schedule)
        history, metrics, _ = train_student(task, self.experiment, self.store, on_validation)
        return history, metrics

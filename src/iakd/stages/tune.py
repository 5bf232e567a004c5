"""Search for a pair's best schedule: reads data and teacher, writes results/<dataset>/tune/<pair>/."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iakd import files, runs
from iakd.data.store import MANIFEST, Store
from iakd.files import digest
from iakd.params import Schedule
from iakd.plan import Plan, StudyJob
from iakd.tuning.address import check_address
from iakd.tuning.products import trial_path, up_to_date
from iakd.tuning.winner import SCHEDULE

if TYPE_CHECKING:
    from iakd.tuning.trial import OnValidation

SEEDS_OF_STUDENTS = 2**31  # params.Seed lies below: no student that is reported shares its seed with a trial

log = logging.getLogger(__name__)


def run(plan: Plan, job: StudyJob) -> Path:
    """Bring the study of one pair to its end, if it is not there yet. Returns the path of schedule.yaml."""
    tune = plan.params.tune
    check_address(tune.storage)
    study = _study_run(plan, job)
    if up_to_date(study, tune.trials):
        log.info("%s: already tuned", job.folder)
        return job.folder / SCHEDULE
    from iakd.tuning.conduct import conduct  # imports Optuna

    return conduct(plan, job, study, StudentTrainer)


def _study_run(plan: Plan, job: StudyJob) -> runs.Run:
    manifest = files.read_json(plan.data.folder / MANIFEST, "run `iakd prepare` first")
    teacher = files.read_json(job.teacher.folder / runs.RUN, "run `iakd teach` first")
    inputs = {"data": manifest["sha256"], "teacher": teacher["model_sha256"]}
    return runs.Run(
        path=job.path,
        stage=job.stage,
        key=digest([job.key, inputs]),
        params=job.settings,
        seed=plan.params.tune.seed,
        about={
            "dataset": plan.params.dataset.name,
            "teacher": job.teacher.network.name,
            "student": job.student.name,
            "method": _label(plan),
        },
        inputs=inputs,
    )


def _label(plan: Plan) -> str:
    """The method whose settings the study keeps: the first one with a tuned schedule."""
    return next(label for label, method in plan.params.methods.items() if method.tuned)


class StudentTrainer:
    """Trains the students of a study; all of them start from the same weights and see the same batches."""

    def __init__(self, plan: Plan, job: StudyJob, key: str) -> None:
        self.plan = plan
        self.job = job
        self.key = key
        self.store = Store.open(plan.data.folder, settings=plan.data.settings)

    def run(self, number: int, schedule: Schedule) -> runs.Run:
        """The run of trial `number`."""
        from iakd.students import student_run

        path = f"{self.job.path}/{trial_path(number)}"
        seed = SEEDS_OF_STUDENTS + self.plan.params.tune.seed
        return student_run(
            self.plan,
            self.job,
            path,
            _label(self.plan),
            seed,
            schedule,
            self.store,
            trial=number,
            study=self.key,
        )

    def train(
        self, run: runs.Run, schedule: Schedule, on_validation: "OnValidation"
    ) -> tuple[list[runs.Row], dict[str, Any]]:
        """Train to the end; history and metrics."""
        from iakd.students import Task, train_student

        task = Task(run, self.job, schedule)
        history, metrics, _ = train_student(task, self.plan, self.store, on_validation)
        return history, metrics

"""Evaluate finished models on the test set, once each, and sum up: evaluation.json beside each model, and the folder
results/<dataset>/evaluation/.
"""

import logging
from pathlib import Path

from iakd import files, runs
from iakd.data.store import Store
from iakd.errors import UserError
from iakd.params import did_you_mean
from iakd.plan import Plan, StudentJob, TeacherJob
from iakd.reporting import comparison, tables
from iakd.reporting.comparison import EVALUATION

log = logging.getLogger(__name__)


def evaluate_run(plan: Plan, folder: Path) -> Path:
    """Evaluate the model in `folder`; returns the path of its evaluation.json.

    An evaluation of the same weights on the same data is left alone: the test set is touched once. Raises UserError
    where `folder` is none of the plan's, or its model is missing, damaged or of other settings or data.
    """
    jobs = {job.folder.resolve(): job for job in plan.trained}
    if folder.resolve() not in jobs:
        names = [str(job.folder) for job in plan.trained]
        shown = ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
        raise UserError(f"--run {folder}: no model of these settings{did_you_mean(str(folder), names)}; known: {shown}")
    return _evaluate(plan, jobs[folder.resolve()], Store.open(plan.data.folder, settings=plan.data.settings))


def run(plan: Plan) -> Path:
    """Evaluate every model that has not been, and write the summary folder, whose path is returned.

    Raises UserError naming the first missing model and the command that makes it.
    """
    for job in plan.trained:
        if not (job.folder / runs.RUN).exists():
            raise UserError(f"{job.folder} holds no finished model: run `{_command(job)}`")
    store = Store.open(plan.data.folder, settings=plan.data.settings)
    for job in plan.trained:
        _evaluate(plan, job, store)
    result = comparison.read(plan)
    for name, rows in (
        ("runs.csv", tables.runs(result)),
        ("summary.csv", tables.summary(result)),
        ("accuracy.csv", tables.accuracy(result)),
        ("curves.csv", tables.curves(result)),
    ):
        files.write_text(plan.evaluation / name, runs.history_text(rows))
    files.write_json(plan.evaluation / "metrics.json", tables.metrics(result))
    return plan.evaluation


def _evaluate(plan: Plan, job: TeacherJob | StudentJob, store: Store) -> Path:
    content, record = runs.read_model(job.folder)
    if not record["params"].items() >= job.settings.items():
        raise UserError(f"{job.folder} was trained with other settings: run `{_command(job)}`")
    if record["data_sha256"] != store.sha256:
        raise UserError(f"{job.folder} was trained on other data than {store.folder} holds: run `{_command(job)}`")
    path = job.folder / EVALUATION
    about = {
        "dataset": plan.params.dataset.name,
        "teacher": job.network.name if isinstance(job, TeacherJob) else job.teacher.network.name,
        "student": None if isinstance(job, TeacherJob) else job.student.name,
        "method": comparison.TEACHER if isinstance(job, TeacherJob) else job.label,
        "seed": job.seed,
        "model_sha256": record["model_sha256"],
        "data_sha256": store.sha256,
    }
    if path.exists() and about.items() <= files.read_json(path, "delete it, then run `iakd evaluate`").items():
        log.info("%s: already evaluated", job.folder)
        return path
    from iakd.evaluation.model import measure  # torch takes seconds to import, and often nothing is to be done
    from iakd.students import network_of

    model = network_of(job, store)
    measured = measure(plan.params, model, job.normalisation, content, str(job.folder / runs.MODEL), store)
    files.write_json(path, {**about, **measured})
    return path


def _command(job: TeacherJob | StudentJob) -> str:
    """What makes this model."""
    if isinstance(job, TeacherJob):
        return f"iakd teach --teacher {job.network.name} --seed {job.seed}"
    pair = f"{job.teacher.network.name}-{job.student.name}"
    return f"iakd distill --pair {pair} --method {job.label} --seed {job.seed}"

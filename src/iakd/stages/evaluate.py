"""Evaluate finished models on the test set, once each, and compare them.

Writes evaluation.json beside each model, and results/<dataset>/evaluation/.
"""

import logging
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import did_you_mean
from iakd.data.store import PreparedData
from iakd.errors import UserError, try_each
from iakd.evaluation import made_from
from iakd.evaluation.record import MEASURED, read_evaluation
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, TeacherJob, as_trained
from iakd.reporting import tables, verdict
from iakd.reporting.results import TEACHER, read_comparison

log = logging.getLogger(__name__)


def evaluate_run(experiment: Experiment, folder: Path) -> Path:
    """Evaluate the model in `folder` and return the path of its evaluation.json.

    An existing evaluation of the same weights on the same data is kept, since the test set is touched once.

    Raises UserError if `folder` is not one of the experiment's, or its model is missing, damaged, or was trained with
    other settings or data.
    """
    jobs = {job.folder: job for job in experiment.trained}
    if folder not in jobs:  # perhaps in other words; to resolve them all takes as long as to evaluate a small model
        folder = {path.resolve(): path for path in jobs}.get(folder.resolve(), folder)
    if folder not in jobs:
        names = [str(job.folder) for job in experiment.trained]
        shown = ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
        raise UserError(
            f"--run {folder}: not a model of these settings{did_you_mean(str(folder), names)}; known: {shown}"
        )
    return _evaluate(
        experiment, jobs[folder], PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    )


def run(experiment: Experiment) -> Path:
    """Evaluate every model that has no evaluation yet, write the comparison and return its folder.

    One that is missing or damaged does not stop the others. Raises UserError at the end, naming the first one and the
    command that trains it.
    """
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)

    def work(position: int) -> Path:
        job = experiment.trained[position]
        if not (job.folder / run_dir.RUN).exists():
            raise UserError(f"{job.folder} has no finished model: run `{job.command}`")
        return _evaluate(experiment, job, store)

    try_each(len(experiment.trained), work)
    made = made_from.comparison(experiment)
    comparison = read_comparison(experiment)
    for name, rows in (
        (run_dir.RUNS, tables.runs(comparison)),
        (run_dir.SUMMARY, tables.summary(comparison)),
        (run_dir.ACCURACY, tables.accuracy(comparison)),
        (run_dir.CURVES, tables.curves(comparison)),
    ):
        files.write_text(experiment.evaluation / name, run_dir.history_text(rows))
    files.write_json(experiment.evaluation / run_dir.METRICS, tables.metrics(comparison))
    files.write_json(experiment.evaluation / run_dir.SWAPPING, tables.swap_effects(comparison))
    files.write_json(experiment.evaluation / run_dir.HEADLINE, tables.headline(comparison))
    _write_rows(experiment.evaluation / run_dir.ROWS, tables.metric_files(comparison))
    made.record()
    for warning in verdict.warnings(comparison):
        log.warning("%s", warning)
    return experiment.evaluation


def accuracy(path: Path) -> str:
    """Return, for people, the accuracy in an evaluation.json."""
    found = read_evaluation(path, "evaluate it again")
    return f"{path.parent}: {found['top1']:.2f} % top-1, {found['top5']:.2f} % top-5, {found['n']:,} test images"


def _write_rows(folder: Path, rows: dict[str, dict[str, float | int]]) -> None:
    """Write the file of each method, and remove those of methods that are no longer in the settings."""
    for name, row in rows.items():
        files.write_json(folder / name, row)
    for path in folder.glob("*/*.json"):
        if str(path.relative_to(folder)) not in rows:
            path.unlink()
    for pair in folder.iterdir():
        if pair.is_dir() and not any(pair.iterdir()):  # Snakemake leaves a file in it
            pair.rmdir()


def _evaluate(experiment: Experiment, job: TeacherJob | StudentJob, store: PreparedData) -> Path:
    content, record = run_dir.read_model(job.folder)
    job.check_record(record, store.folder, store.sha256)
    path = job.folder / run_dir.EVALUATION
    about = {
        "dataset": experiment.params.dataset.name,
        "teacher": job.network.name if isinstance(job, TeacherJob) else job.teacher.network.name,
        "student": None if isinstance(job, TeacherJob) else job.student.name,
        "method": TEACHER if isinstance(job, TeacherJob) else job.label,
        "seed": job.seed,
        "model_sha256": record["model_sha256"],
        "data_sha256": store.sha256,
    }
    if _up_to_date(path, about):
        log.info("%s: already evaluated", job.folder)
        return path
    from iakd.distillation.assembly import network_of
    from iakd.evaluation.measure import evaluate_model, evaluate_peer, load_for_test  # torch takes seconds to import

    if isinstance(job, StudentJob):
        job = as_trained(job, record)
    weights = str(job.folder / run_dir.MODEL)
    measured = evaluate_model(experiment.params, network_of(job, store), job.normalisation, content, weights, store)
    if isinstance(job, StudentJob) and "peer_sha256" in record:
        peer, own = network_of(job.teacher, store), job.teacher.normalisation
        content, weights = _read_peer(job, record["peer_sha256"]), str(job.folder / run_dir.PEER)
        test = load_for_test(experiment.params, peer, own, content, weights, store)
        measured["peer"] = evaluate_peer(experiment.params, peer, test)
    key = made_from.evaluation_key(experiment, record["model_sha256"], store.sha256)
    files.write_record(path, {**about, "key": key, **measured}, unhashed=MEASURED)
    return path


def _up_to_date(path: Path, about: dict[str, Any]) -> bool:
    """Return whether there is a complete evaluation of this very model; a damaged one is made again."""
    if not path.exists():
        return False
    try:
        return about.items() <= read_evaluation(path, "evaluated again").items()
    except UserError as error:
        log.warning("%s", error)
        return False


def _read_peer(job: StudentJob, sha256: str) -> bytes:
    """Return the weights of the network that was trained beside a student. Raises UserError if they are damaged."""
    path = job.folder / run_dir.PEER
    content = path.read_bytes() if path.is_file() else b""
    if files.sha256_bytes(content) != sha256:
        remedy = f"delete {job.folder}, then run `{job.command}` and `iakd evaluate`"
        raise UserError(f"{path} is missing or damaged: {remedy}")
    return content

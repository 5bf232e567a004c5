"""Export trained students: reads them, their evaluations and the data, writes results/<dataset>/export/<pair>/."""

import contextlib
import logging
import os
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Network
from iakd.data.store import PreparedData
from iakd.errors import RunFailed, UserError
from iakd.evaluation.record import read_evaluation, read_export
from iakd.experiment import run_dir
from iakd.experiment.jobs import SHORT, Experiment, ExportJob, StudentJob, TeacherJob, as_trained
from iakd.experiment.provenance import provenance, source_sha

log = logging.getLogger(__name__)

KEPT_APART = ".other."  # start of the names of folders that are being built or removed


def run(experiment: Experiment, job: ExportJob) -> Path:
    """Export the models of a pair, except those whose very export is there, and return the path of exported.json.

    Without named models it is the best student of the method that is best on the validation images (`choose`). Each
    model is built in a folder of its own, which takes its place as a whole once all its files have been checked.

    Raises UserError if a student or its evaluation is missing, and RunFailed if a file differs from its model.
    """
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    found = [Student.read(student, store) for student in job.students]
    chosen = choose(found, each_method=job.named)
    with files.exclusive(job.state / run_dir.LOCK, f"{job.folder}: another process is exporting; wait for it to end"):
        job.folder.mkdir(parents=True, exist_ok=True)
        for left in job.folder.glob(f"{KEPT_APART}*"):  # by a killed export
            shutil.rmtree(left)
        for student in chosen:
            _export(experiment, job, student, found, store)
        with contextlib.suppress(RunFailed):  # `iakd latency`, which runs alone, says why it is impossible
            graphs(experiment, chosen[0].job.teacher, store)
        labels = [student.job.label for student in chosen]
        for folder in job.folder.iterdir():
            if folder.name not in labels and (folder / run_dir.EXPORT).exists():
                shutil.rmtree(folder)  # of an earlier choice
        index = {
            "pair": job.pair,
            "params": job.settings,
            "chosen_by": "settings" if job.named else "validation",
            "candidates": _candidates(found),
            "models": [
                {
                    "method": student.job.label,
                    "seed": student.job.seed,
                    "folder": student.job.label,
                    "model_sha256": student.record["model_sha256"],
                    "key": _export_key(job.folder / student.job.label),
                }
                for student in chosen
            ],
        }
        files.write_record(job.folder / run_dir.EXPORTED, index)
    return job.folder / run_dir.EXPORTED


@dataclass(frozen=True)
class Student:
    """A finished student that can be exported, as it was trained, with its records."""

    job: StudentJob
    record: dict[str, Any]  # run.json
    metrics: dict[str, Any]
    evaluation: dict[str, Any]

    @classmethod
    def read(cls, job: StudentJob, store: PreparedData) -> "Student":
        """Read the records of a student. Raises UserError if one is missing, or of other settings or data."""
        train = f"run `{job.command}`"
        record = files.read_object(job.folder / run_dir.RUN, train, "params", "data_sha256", "model_sha256")
        job.check_record(record, store.folder, store.sha256)
        evaluate = f"run `iakd evaluate --run {job.folder}`"
        evaluation = read_evaluation(job.folder / run_dir.EVALUATION, evaluate)
        if evaluation.get("model_sha256") != record["model_sha256"]:
            raise UserError(f"{job.folder / run_dir.EVALUATION} is of another model: {evaluate}")
        metrics = files.read_object(job.folder / run_dir.METRICS, train, "val_top1")
        if run_dir.damaged_products(job.folder, record, only=(run_dir.METRICS,)):
            what = f"{job.folder / run_dir.METRICS} is damaged (its SHA-256 is not the one in {run_dir.RUN})"
            raise UserError(f"{what}: delete {job.folder}, then {train}")
        return cls(as_trained(job, record), record, metrics, evaluation)

    @property
    def merit(self) -> tuple[float, float]:
        """Accuracy and certainty on the validation images; more is better."""
        return run_dir.merit(self.metrics)


def choose(students: list[Student], each_method: bool = False) -> list[Student]:
    """Return the best seed of the best method, or with `each_method` of every method, on the validation images.

    The best method has the highest mean accuracy over its seeds, so that one lucky seed does not decide; of equal ones
    that with the lower mean loss, then the first. Methods with fewer seeds than others are not in question. Its best
    seed has the highest accuracy, then the lower loss: a deployed model is one training, and validation images may
    choose it. Test images never do.
    """
    methods = _by_method(students)
    best = {label: max(seeds, key=lambda student: student.merit) for label, seeds in methods.items()}
    if each_method:
        return list(best.values())
    means = {label: _mean_merit(methods[label]) for label in _contenders(methods)}
    return [best[max(means, key=lambda label: means[label])]]


def _by_method(students: list[Student]) -> dict[str, list[Student]]:
    methods: dict[str, list[Student]] = {}
    for student in students:
        methods.setdefault(student.job.label, []).append(student)
    return methods


def _contenders(methods: dict[str, list[Student]]) -> list[str]:
    """Return the methods with the most seeds, as `PairComparison.contenders` does."""
    most = max(map(len, methods.values()))
    return [label for label, seeds in methods.items() if len(seeds) == most]


def _mean_merit(seeds: list[Student]) -> tuple[float, float]:
    top1, certainty = (statistics.fmean(values) for values in zip(*(student.merit for student in seeds), strict=True))
    return top1, certainty


def _candidates(students: list[Student]) -> list[dict[str, Any]]:
    return [run_dir.candidate(student.job.label, student.job.seed, student.metrics) for student in students]


def _export(
    experiment: Experiment, job: ExportJob, student: Student, candidates: list[Student], store: PreparedData
) -> None:
    folder = job.folder / student.job.label
    content, record = run_dir.read_model(student.job.folder)
    about = {
        "key": job.model_key(record),
        "dataset": experiment.params.dataset.name,
        "pair": job.pair,
        "method": student.job.label,
        "seed": student.job.seed,
        "model_sha256": record["model_sha256"],
        "data_sha256": store.sha256,
        "evaluation_sha256": files.digest(student.evaluation),
        "candidates": _candidates(candidates),
    }
    if _is_whole(folder, about):
        log.info("%s: already exported", folder)
        return
    from iakd.export.build import build  # torch and the exporters take seconds to import

    building: Path | None = None
    try:
        building = Path(tempfile.mkdtemp(prefix=KEPT_APART, dir=job.folder))
        compared = [other for other in candidates if not job.named or other.job.label == student.job.label]
        results = build(building, experiment, student.job, content, record, store, _for_the_card(student, compared))
        hashes = {path.name: files.sha256_file(path) for path in sorted(building.iterdir())}
        files.write_record(
            building / run_dir.EXPORT,
            {**about, **results, "files": hashes, "params": student.record["params"], **provenance()},
        )
        _publish(building, folder)
    except OSError as error:  # a full disk: of which a message should name the folder that the user knows
        if error.filename is None or KEPT_APART in str(error.filename):
            error.filename, error.filename2 = str(job.folder), None
        raise
    finally:
        if building:
            shutil.rmtree(building, ignore_errors=True)


def graphs(experiment: Experiment, job: TeacherJob | StudentJob, store: PreparedData) -> dict[str, Path]:
    """Return ONNX files of a model that is not exported, named as an export names them; those missing are made.

    They are to be measured, not used: nothing is checked. Raises RunFailed if torch cannot make them.
    """
    if isinstance(job, TeacherJob) and job.network.black_box:
        raise RunFailed(f"{job.network.name} is a black box, which is not translated to ONNX")
    content, record = run_dir.read_model(job.folder)
    source = source_sha("iakd.export.convert", *job.modules)
    folder = experiment.graphs / f"{record['model_sha256'][:SHORT]}-{source[:SHORT]}"
    if not (folder / run_dir.ONNX).exists():
        from iakd.export import build, convert  # torch takes seconds to import
        from iakd.models.quantisation import each_bits

        model = build.deployed(as_trained(job, record) if isinstance(job, StudentJob) else job, content, store)
        made = [(bits, convert.to_onnx(model, store.image_shape, {})) for bits in each_bits(model.network)]
        for bits, graph in reversed(made):  # the highest bit-width, model.onnx, is written last
            name = run_dir.ONNX if bits == made[0][0] else run_dir.ONNX_OF_BITS.format(bits)
            files.write_bytes(folder / name, graph)
    return {path.name: path for path in sorted(folder.glob("*.onnx"))}


def _export_key(folder: Path) -> str:
    return str(files.read_object(folder / run_dir.EXPORT, f"delete {folder}, then run `iakd export`", "key")["key"])


def _is_whole(folder: Path, about: dict[str, Any]) -> bool:
    """Return whether `folder` holds this very export, unaltered."""
    path = folder / run_dir.EXPORT
    if not path.exists():
        return False
    try:
        record = read_export(path, "exported again")
    except UserError as error:
        log.warning("%s", error)
        return False
    return about.items() <= record.items() and not run_dir.damaged_files(folder, record["files"])


def _publish(building: Path, folder: Path) -> None:
    """Let the complete folder take the place of the old one: readers see either, or for a moment none."""
    for path in building.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    building.chmod(0o755)
    if folder.exists():
        folder.replace(Path(tempfile.mkdtemp(prefix=KEPT_APART, dir=folder.parent)) / "old")
    building.replace(folder)
    for old in folder.parent.glob(f"{KEPT_APART}*"):
        shutil.rmtree(old)


def _for_the_card(student: Student, candidates: list[Student]) -> dict[str, Any]:
    """Return what the model card says of the choice and of the other seeds."""
    job = student.job
    methods = _by_method(candidates)
    seeds, contenders = methods[job.label], _contenders(methods)
    by_seed = f"seed {job.seed} is the best of {len(seeds)} on the validation images" if len(seeds) > 1 else ""
    if len(methods) > 1:
        fewer = f" with {len(seeds)} seeds" if len(contenders) < len(methods) else ""
        if len(contenders) > 1:
            of = f"Of {len(contenders)} methods{fewer}, `{job.label}` is the best on the validation images"
            of += " (mean over seeds)"
        else:
            of = f"`{job.label}` is the only method{fewer}"
        choice = f"{of}{'; ' + by_seed if by_seed else ''}."
    else:
        choice = (by_seed[:1].upper() + by_seed[1:] or f"Seed {job.seed}, as the settings ask") + "."
    top1 = [other.evaluation["top1"] for other in seeds]
    return {
        "evaluation": student.evaluation,
        "val_top1": student.metrics["val_top1"],
        "choice": choice,
        "top1_of_seeds": top1,
        "mean": statistics.fmean(top1),
        "std": statistics.stdev(top1) if len(top1) > 1 else 0.0,
        "settings": {
            "student": _set(job.student),
            "teacher": _set(job.teacher.network),
            "method": {job.label: job.method.settings()},
            "recipe": job.recipe.model_dump(mode="json"),
        },
    }


def _set(network: Network) -> dict[str, Any]:
    """Return a network's settings, without defaults and without the place of a checkpoint on this machine."""
    return network.model_dump(mode="json", exclude={"checkpoint"}, exclude_defaults=True)

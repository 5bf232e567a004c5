"""What the report says of models in use: the exported files, and accuracy, time and size of all networks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from iakd.errors import UserError
from iakd.evaluation.record import read_export, read_exported, read_record
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment
from iakd.reporting import formatting
from iakd.reporting.results import Comparison, MethodResults, PairComparison

FLOAT, INT8 = "float32", "int8"  # precisions, as in `run_dir.precision`


class _Batch(BaseModel):
    median_ms: float
    p95_ms: float
    images_per_s: float


class Measured(BaseModel):
    """A network in one precision as an ONNX file, as ONNX Runtime runs it; `batches` by the number of images."""

    network: str
    precision: str
    of: list[str]  # TEACHER-STUDENT/METHOD, or the name of a teacher
    bytes: int
    memory_mib: float
    batches: dict[str, _Batch]

    @property
    def latency_ms(self) -> float:
        """The median time of one image."""
        return self.batches["1"].median_ms


Times = dict[str, dict[str, Measured]]  # by TEACHER-STUDENT/METHOD or teacher, and precision


class _LeftOut(BaseModel):
    network: str
    of: list[str]
    reason: str


class _Latency(BaseModel):
    threads: int
    processor: str
    cores: int
    system: str
    onnxruntime: str
    models: list[Measured]
    left_out: list[_LeftOut]


@dataclass(frozen=True)
class Candidate:
    """A method's students in one precision, or a teacher: accuracy (percent, mean over the seeds) and costs."""

    label: str
    kind: str  # as `MethodResults.kind`
    top1: float
    std: float | None
    measured: Measured
    macs: float = 1.0
    training_seconds: float | None = None  # of one seed; None if it was imported

    @property
    def latency_ms(self) -> float:
        """Milliseconds of one image."""
        return self.measured.latency_ms

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.measured.bytes


@dataclass(frozen=True)
class ExportedFile:
    """An exported ONNX file; `change` is what its precision costs on the test images, in points."""

    pair: str
    method: str
    label: str  # as in figures and tables
    kind: str  # as `MethodResults.kind`
    path: Path
    top1: float
    change: float
    measured: Measured


@dataclass(frozen=True)
class Exports:
    """The exported files, all candidates with their costs, and under which conditions these were measured."""

    files: list[ExportedFile]
    candidates: list[Candidate]
    conditions: str
    left_out: list[str]
    digits: int  # of accuracies

    @property
    def folders(self) -> list[Path]:
        """The folders of the exported models."""
        return list(dict.fromkeys(file.path.parent for file in self.files))

    def of(self, pair: PairComparison, results: MethodResults) -> ExportedFile | None:
        """Return the file of a method in its usual precision, the first; None if it was not exported."""
        return next((file for file in self.files if (file.pair, file.method) == (pair.name, results.label)), None)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each exported file and each teacher, for the page."""
        exported = [(f.label, f.kind, f.top1, f.path.name, f.measured) for f in self.files]
        teachers = [(c.label, c.kind, c.top1, "", c.measured) for c in self.candidates if c.kind == "teacher"]
        return [
            {
                "label": label,
                "kind": kind,
                "top1": formatting.number(top1, self.digits),
                "file": name,
                "size": formatting.megabytes(measured.bytes),
                "memory": formatting.QUANTITIES["memory_mib"].text(measured.memory_mib),
                "times": [
                    f"{formatting.three_digits(batch.median_ms)} ({formatting.three_digits(batch.p95_ms)})"
                    for batch in measured.batches.values()
                ],
                "speed": formatting.whole(max(batch.images_per_s for batch in measured.batches.values())),
            }
            for label, kind, top1, name, measured in [*exported, *teachers]
        ]


def read_exports(experiment: Experiment, comparison: Comparison) -> Exports | None:
    """Read what is exported and measured; None if nothing is. Raises UserError if a file is damaged or outdated."""
    path = experiment.export_folder / run_dir.LATENCY
    if not experiment.exports or not path.exists():
        return None
    latency = _Latency.model_validate(read_record(path, _Latency, "delete it, then run `iakd latency`"))
    measured: Times = {name: {} for found in latency.left_out for name in found.of}
    for model in latency.models:
        for name in model.of:
            measured.setdefault(name, {})[model.precision] = model
    for pair in comparison.pairs:
        for results in (pair.teacher, *pair.methods):
            if _name(pair, results) not in measured:
                raise UserError(f"{path} has no times of {_name(pair, results)}: run `iakd latency`")
    exported = list(_exported(experiment, comparison, measured))
    on = formatting.machine(latency.processor, latency.cores, latency.system)
    return Exports(
        exported,
        list(_candidates(comparison, measured, exported)),
        f"ONNX Runtime {latency.onnxruntime} with {formatting.plural(latency.threads, 'thread')} on {on}",
        [f"{found.network}: {found.reason}" for found in latency.left_out],
        comparison.digits,
    )


def _name(pair: PairComparison, results: MethodResults) -> str:
    return f"{pair.name}/{results.label}" if results.method else pair.teacher_name


def _label(comparison: Comparison, pair: PairComparison, results: MethodResults, precision: str = FLOAT) -> str:
    """Return the name of a model: with its teacher if the student has several, with its precision unless usual."""
    if not results.method:
        return pair.teacher_name
    same = [other for other in comparison.pairs if other.student_name == pair.student_name]
    student = pair.title if len(same) > 1 else pair.student_name
    return f"{student}, {results.label}{'' if precision == FLOAT else f', {precision}'}"


def _exported(experiment: Experiment, comparison: Comparison, measured: Times) -> Iterator[ExportedFile]:
    pairs = {pair.name: pair for pair in comparison.pairs}
    for job in experiment.exports:
        again = f"run `iakd export --pair {job.pair}`"
        pair, network = pairs[job.pair], job.students[0].student
        index = job.folder / run_dir.EXPORTED
        for model in read_exported(index, again):
            folder = job.folder / model["folder"]
            record = read_export(folder / run_dir.EXPORT, again)
            results = next((results for results in pair.methods if results.label == model["method"]), None)
            if results is None:
                raise UserError(f"{index} names {model['method']}, which is not in the settings: {again}")
            names = [name for name in record["files"] if name.endswith(".onnx")]
            for name in sorted(names, key=lambda name: (name != run_dir.ONNX, name)):
                precision = run_dir.precision(name, network)
                if precision not in measured[_name(pair, results)]:
                    raise UserError(f"{folder / name} is not measured: run `iakd latency`")
                top1 = _top1(record, precision)
                yield ExportedFile(
                    pair.name,
                    results.label,
                    _label(comparison, pair, results, precision),
                    results.kind,
                    folder / name,
                    top1,
                    top1 - record["evaluation"]["top1"],
                    measured[_name(pair, results)][precision],
                )


def _top1(record: dict[str, Any], precision: str) -> float:
    """Return the test accuracy of an exported file in one of its precisions."""
    if precision == INT8:
        return float(record["int8"]["evaluation"]["top1"])
    by_bits = record["evaluation"].get("bit_widths", {})
    return float(by_bits.get(precision.removesuffix(" bits"), record["evaluation"])["top1"])


def _candidates(comparison: Comparison, measured: Times, exported: list[ExportedFile]) -> Iterator[Candidate]:
    """Yield every teacher once, and every method of every pair in every precision that was measured.

    Of 8-bit integers, which only exported models have: the method's mean, less what they cost the exported model.
    """
    teachers = {pair.teacher_name: (pair, pair.teacher) for pair in comparison.pairs}
    methods = [(pair, results) for pair in comparison.pairs for results in pair.methods]
    integers = {(file.pair, file.label): file for file in exported if file.measured.precision == INT8}
    for pair, results in [*teachers.values(), *methods]:
        for precision, found in measured[_name(pair, results)].items():
            label, top1, change = _label(comparison, pair, results, precision), results.top1, 0.0
            if precision == INT8:
                if (pair.name, label) not in integers:
                    continue
                change = integers[pair.name, label].change
            elif results.bit_widths:
                top1 = results.at_bits(int(precision.removesuffix(" bits")), "top1")
            seconds = None if results.imported_from else results.training_seconds
            macs = results.median("macs")
            yield Candidate(label, results.kind, top1.mean + change, top1.std, found, macs, seconds)


def pareto_front(candidates: list[Candidate], cost: str) -> list[Candidate]:
    """Return those that no other one beats, cheapest first: each is more accurate than all that are no dearer.

    Those whose cost is unknown are left out.
    """
    front: list[Candidate] = []
    known = [candidate for candidate in candidates if getattr(candidate, cost)]
    for candidate in sorted(known, key=lambda candidate: (getattr(candidate, cost), -candidate.top1)):
        if not front or candidate.top1 > front[-1].top1:
            front.append(candidate)
    return front

"""The report as data, results.json: settings and results of every model, enough to compare it with another report."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from iakd import files
from iakd.config import explain
from iakd.errors import UserError
from iakd.evaluation.metrics import pack, unpack
from iakd.experiment.run_dir import REPORT, RESULTS_FILE
from iakd.reporting.results import Comparison, MethodResults, ModelResults, PairComparison
from iakd.reporting.statistics import Correct


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class DataRecord(_Strict):
    """The images; the hashes are those of their contents and labels."""

    name: str
    sha256: str
    test_sha256: str
    test_images: int
    classes: int


class ModelRecord(_Strict):
    """One trained model; `pair` is TEACHER-STUDENT, or a teacher's name; accuracies in percent."""

    pair: str
    method: str
    is_teacher: bool
    seed: int
    folder: str
    key: str
    git_commit: str | None
    model_sha256: str
    device: str
    finished: str
    top1: float
    val_top1: float
    correct: str
    parameters: float
    weight_bytes: float
    macs: float
    latency_ms: float
    training_seconds: float


class ReportRecord(_Strict):
    """What `iakd compare` knows of a report."""

    data: DataRecord
    confidence: float
    settings: dict[str, Any]
    models: list[ModelRecord]

    @model_validator(mode="after")
    def _consistent(self) -> "ReportRecord":
        for model in self.models:
            right = int(unpack(model.correct, self.data.test_images).sum())
            if round(self.data.test_images * model.top1 / 100) != right:
                raise ValueError(f"models: {model.folder}: {right} images are correct, but top1 is {model.top1:.2f} %")
        return self

    def correct_by_seed(self, models: list[ModelRecord]) -> dict[int, Correct]:
        """Return for each seed whether each test image was classified correctly, (images,)."""
        return {model.seed: unpack(model.correct, self.data.test_images) for model in models}


def content(comparison: Comparison, manifest: dict[str, Any], settings: str) -> dict[str, Any]:
    """Return the content of results.json; `settings` are those of the experiment as YAML."""
    teachers = {pair.teacher_name: (pair, pair.teacher) for pair in comparison.pairs}
    students = [(pair, results) for pair in comparison.pairs for results in pair.methods]
    record = ReportRecord(
        data=DataRecord(
            name=comparison.params.dataset.name,
            sha256=manifest["sha256"],
            test_sha256=manifest["splits"]["test"]["sha256"],
            test_images=comparison.test_images,
            classes=len(manifest["classes"]),
        ),
        confidence=comparison.params.report.confidence,
        settings=yaml.safe_load(settings),
        models=[
            _model(pair, results, model)
            for pair, results in (*teachers.values(), *students)
            for model in results.models
        ],
    )
    return record.model_dump(mode="json")


def _model(pair: PairComparison, results: MethodResults, model: ModelResults) -> ModelRecord:
    evaluation, record = model.evaluation, model.record
    return ModelRecord(
        pair=pair.name if results.method else pair.teacher_name,
        method=results.label,
        is_teacher=results.method is None,
        seed=model.seed,
        folder=str(model.folder),
        key=record["key"],
        git_commit=record["git_commit"],
        model_sha256=record["model_sha256"],
        device=record["device"],
        finished=record["finished"],
        top1=evaluation["top1"],
        val_top1=model.metrics["val_top1"],
        correct=pack(model.correct),
        **{name: model.cost(name) for name in ("parameters", "weight_bytes", "macs", "latency_ms")},
        training_seconds=record["wall_seconds"],
    )


def find(place: Path) -> Path:
    """Return the folder of the report at `place`: itself, or in its `report`, or the only one in results folders there.

    Raises UserError if there is none, or more than one.
    """
    if not place.exists():
        raise UserError(f"{place} does not exist: name a results folder, such as results/digits, or a report")
    if place.is_file():
        place = place.parent
    for folders in (
        [place],
        [place / "report"],
        sorted(place.glob("*/report")),
        sorted(place.glob("results/*/report")),
    ):
        found = [folder for folder in folders if (folder / RESULTS_FILE).is_file() or (folder / REPORT).is_file()]
        if len(found) > 1:
            raise UserError(f"{place} has several reports; name one of {', '.join(str(one) for one in found)}")
        if found:
            return found[0]
    raise UserError(f"{place} has no report: run `iakd report`, or name a results folder, such as results/digits")


def read(folder: Path) -> ReportRecord:
    """Read the record of a report. Raises UserError if it is missing, damaged or of an earlier version."""
    path = folder / RESULTS_FILE
    again = "run `iakd report` there"
    if not path.exists():
        raise UserError(f"{folder} has no {RESULTS_FILE}, since an earlier version wrote this report: {again}")
    try:
        return ReportRecord.model_validate(files.read_object(path, again))
    except (ValidationError, ValueError) as error:
        what = explain(error, ReportRecord) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is damaged or of another version ({what}): {again}") from None

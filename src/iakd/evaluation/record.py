"""Records that are checked before anything is made from them, and what evaluation.json has to contain."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from iakd import files
from iakd.config import Network, explain
from iakd.errors import UserError
from iakd.evaluation.metrics import unpack
from iakd.experiment.run_dir import INT8

Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Calibration(_Record):
    n: list[Count]
    confidence: list[Share | None]
    top1: list[Share | None]


class _AtBits(_Record):
    top1: Percent
    weight_bytes: Positive
    bit_operations: Positive


class _Peer(_Record):
    top1: Percent


class _Evaluation(_Record):
    dataset: str
    teacher: str
    student: str | None
    method: str
    seed: int
    model_sha256: str
    data_sha256: str
    top1: Percent
    top5: Percent
    nll: Annotated[FiniteFloat, Field(ge=0)]
    ece: Share
    balanced_accuracy: Percent | None = None  # this and the next three: not in evaluations of earlier versions
    macro_f1: Percent | None = None
    majority_top1: Percent | None = None
    support: list[Count] | None = None
    n: Annotated[int, Field(gt=0)]
    correct: str
    per_class_top1: list[Percent | None]
    confusion: list[list[Count]]
    calibration: _Calibration
    parameters: Count  # of a black box that is not computed by torch, 0: unknown
    weight_bytes: Count
    macs: Count
    latency_ms: Positive
    images_per_s: Positive
    bit_widths: dict[str, _AtBits] = {}
    peer: _Peer | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "_Evaluation":
        try:
            right = int(unpack(self.correct, self.n).sum())
        except ValueError as error:
            raise ValueError(f"correct: {error}") from None
        if round(self.n * self.top1 / 100) != right:
            raise ValueError(f"correct: {right} of {self.n} images, but top1 is {self.top1:.2f} %")
        classes = len(self.per_class_top1)
        if {len(row) for row in self.confusion} != {classes} or len(self.confusion) != classes:
            raise ValueError(f"confusion: not {classes} rows and columns, one for each class of per_class_top1")
        if sum(map(sum, self.confusion)) != self.n:
            raise ValueError(f"confusion: its counts do not add up to n, {self.n}")
        bins = self.calibration
        if not len(bins.n) == len(bins.confidence) == len(bins.top1):
            raise ValueError("calibration: its lists have different lengths")
        return self


class _ExportedModel(_Record):
    method: str
    seed: int
    folder: Annotated[str, Field(min_length=1)]


class _Exported(_Record):
    models: list[_ExportedModel]


class _OfFile(_Record):
    top1: Percent
    bit_widths: dict[str, _Peer] = {}


class _Int8(_Record):
    evaluation: _OfFile | None = None


class _Export(_Record):
    files: dict[str, str]
    evaluation: _OfFile
    int8: _Int8 | None

    @model_validator(mode="after")
    def _consistent(self) -> "_Export":
        if INT8 in self.files and not (self.int8 and self.int8.evaluation):
            raise ValueError(f"int8: no evaluation of {INT8}")
        return self


def read_record(path: Path, model: type[BaseModel], hint: str, fault: str = "damaged") -> dict[str, Any]:
    """Return a JSON object as `model` describes it.

    Raises UserError, ending with `hint`, if it is missing, or not as described, which `fault` names.
    """
    found = files.read_json(path, hint)
    try:
        model.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path} is {fault} ({explain(error, model)}): {hint}") from None
    assert isinstance(found, dict)
    return found


MEASURED = ("latency_ms", "images_per_s")  # differ from one evaluation of a model to the next


def network_key(network: Network, evaluation: dict[str, Any]) -> str:
    """Return what models of an experiment have in common if they are the same network with other weights.

    `evaluation` tells apart what methods have made of it: some add layers to a student.
    """
    settings = {name: getattr(network, name) for name in Network.model_fields if name != "name"}
    return files.digest([settings, evaluation["parameters"], evaluation["macs"]])


def read_evaluation(path: Path, hint: str) -> dict[str, Any]:
    """Return an evaluation.json. Raises UserError if it is missing, damaged or incomplete, ending with `hint`."""
    return read_record(path, _Evaluation, hint, "damaged or of an earlier version")


def read_exported(path: Path, hint: str) -> list[dict[str, Any]]:
    """Return the models of a pair's exported.json. Raises UserError as `read_record` does."""
    models: list[dict[str, Any]] = read_record(path, _Exported, hint)["models"]
    return models


def read_export(path: Path, hint: str) -> dict[str, Any]:
    """Return an export.json. Raises UserError as `read_record` does."""
    return read_record(path, _Export, hint)

"""What the report says of exported models: the files to take away, and how fast they run beside their teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iakd import files
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, ExportJob
from iakd.reporting import formatting

PRECISIONS = {run_dir.ONNX: "", run_dir.INT8: " int8"}  # of files; others are named after their bits


@dataclass(frozen=True)
class ExportedModel:
    """An exported file, or the teacher as one, as measured in ONNX Runtime."""

    pair: str
    label: str
    role: str  # student, teacher
    top1: float
    bytes: int
    memory_mib: float
    batches: dict[str, dict[str, float]]  # by batch size

    @property
    def latency_ms(self) -> float:
        """The median time of one image."""
        return self.batches["1"]["median_ms"]


@dataclass(frozen=True)
class Exports:
    """All exports of an experiment: their folders, the measured models, and under which conditions."""

    folders: list[Path]
    models: list[ExportedModel]
    conditions: str

    @property
    def rows(self) -> list[dict[str, str]]:
        """A row per model for the page."""
        return [
            {
                "role": model.role,
                "pair": model.pair,
                "label": model.label,
                "top1": formatting.number(model.top1, 2),
                "size": f"{model.bytes / 1024:,.0f}",
                "memory": formatting.number(model.memory_mib, 0),
                "times": [  # type: ignore[dict-item]
                    f"{batch['median_ms']:.3g} ({batch['p95_ms']:.3g})" for batch in model.batches.values()
                ],
                "speed": f"{max(batch['images_per_s'] for batch in model.batches.values()):,.0f}",
            }
            for model in self.models
        ]


def read_exports(experiment: Experiment) -> Exports | None:
    """Read what is exported and measured; None if nothing is."""
    folders: list[Path] = []
    models: list[ExportedModel] = []
    conditions = ""
    for job in experiment.exports:
        if not (job.folder / run_dir.LATENCY).exists():
            continue
        again = f"delete it, then run `iakd latency --pair {job.pair}`"
        measured = files.read_json(job.folder / run_dir.LATENCY, again)
        index = files.read_json(job.folder / run_dir.EXPORTED, f"run `iakd export --pair {job.pair}`")
        folders += [job.folder / model["folder"] for model in index["models"]]
        models += [_model(job, model) for model in measured["models"]]
        threads = formatting.plural(measured["threads"], "thread")
        conditions = f"{measured['cpu']}, {threads}, nothing else running"
    return Exports(folders, models, conditions) if folders else None


def _model(job: ExportJob, model: dict[str, Any]) -> ExportedModel:
    networks = job.students[0]
    if model["role"] == "teacher":
        label = networks.teacher.network.name
    else:
        name = Path(model["file"]).name
        bits = PRECISIONS.get(name, f" {name.removeprefix('model-').removesuffix('bit.onnx')} bits")
        label = f"{networks.student.name}, {model['method']}{bits}"
    measured = (model[name] for name in ("role", "top1", "bytes", "memory_mib", "batches"))
    return ExportedModel(job.pair, label, *measured)


def pareto_front(models: list[ExportedModel], cost: str) -> list[ExportedModel]:
    """Return the models that no other one beats, cheapest first: more accurate and not dearer, or as accurate and
    cheaper.
    """
    front: list[ExportedModel] = []
    for model in sorted(models, key=lambda model: (getattr(model, cost), -model.top1)):
        if not front or model.top1 > front[-1].top1:
            front.append(model)
    return front

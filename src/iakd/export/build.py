"""Build the files of one exported model in a folder, and check each of them against the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from iakd import files
from iakd.data.store import SPLITS, PreparedData
from iakd.distillation.assembly import finished_network
from iakd.evaluation import seen
from iakd.evaluation.metrics import classification_metrics
from iakd.evaluation.record import read_evaluation
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, TeacherJob
from iakd.export import convert, int8, model_card
from iakd.export.convert import Agreement, Deployed, Images, Logits, images_of
from iakd.export.folder import Model, Preprocessing, labels_text, read_network, weights_file
from iakd.models import Network
from iakd.models.quantisation import at_bits, bit_widths, quantised_layers
from iakd.models.shapes import image_channels

AS_EVALUATED = ("top1", "top5", "nll", "ece", "n", "per_class_top1", "bit_widths")  # of evaluation.json, if there


def deployed(job: TeacherJob | StudentJob, content: bytes, store: PreparedData) -> Deployed:
    """Return a finished model for images with values from 0 to 1, in evaluation mode, on the CPU."""
    return Deployed(finished_network(job, content, store), store).eval()


def build(
    folder: Path,
    experiment: Experiment,
    job: StudentJob,
    content: bytes,
    record: dict[str, Any],
    store: PreparedData,
    card: dict[str, Any],
) -> dict[str, Any]:
    """Write all files of an export to `folder`, and return what was found out about them.

    `content` are the model's weights, `record` its run.json; `card` has what the model card says besides. Raises
    RunFailed if a file does not compute what the model does.
    """
    threads = experiment.params.compute.threads
    torch.set_num_threads(threads)
    model = deployed(job, content, store)
    what = Model(job.student, store.image_shape, len(store.classes), job.method, job.teacher.network)
    assert model.network.normalisation
    preprocessing = Preprocessing.of(store, model.network.normalisation)
    about = {"classes": store.classes, "preprocessing": preprocessing.model_dump(mode="json")}
    checked = _Checked(model, store)

    graph = convert.to_onnx(model, store.image_shape, about)
    float_logits = checked.write(folder / run_dir.ONNX, graph, convert.onnx_logits(graph, checked.images(), threads))
    program = convert.to_pt2(model, store.image_shape)
    checked.write(folder / run_dir.PT2, program, convert.pt2_logits(program, checked.images()))
    weights = folder / run_dir.MODEL
    files.write_bytes(weights, weights_file(model.network, what))
    loaded = AsLoaded(read_network(weights))
    checked.write(weights, weights.read_bytes(), convert.torch_logits(loaded, checked.images()))
    lower_bits = bit_widths(model.network)[1:]
    for bits in lower_bits:
        with at_bits(model.network, bits):
            at_these = _Checked(model, store)
            graph_of_bits = convert.to_onnx(model, store.image_shape, about)
            logits = convert.onnx_logits(graph_of_bits, checked.images(), threads)
            at_these.write(folder / run_dir.ONNX_OF_BITS.format(bits), graph_of_bits, logits)
            checked.agreements |= at_these.agreements
    files.write_text(folder / run_dir.LABELS, labels_text(store.classes))
    files.write_json(folder / run_dir.PREPROCESSING, preprocessing.model_dump(mode="json"))

    as_integers = None
    if experiment.params.export.int8 != "off" and not quantised_layers(model.network):
        as_integers = _int8(folder, graph, float_logits, checked, experiment, store)
    results = {
        "val_top1": card["val_top1"],
        "evaluation": _as_evaluated(card["evaluation"]),
        "agreement": checked.agreements,
        "opset": convert.OPSET,
        "made_with": {package.__name__: package.__version__ for package in (torch, onnx, onnxruntime)},
        "int8": as_integers,
    }
    files.write_text(
        folder / run_dir.CARD,
        model_card.render(
            **card,
            **_about(experiment, job, record, store),
            opset=convert.OPSET,
            int8=as_integers if as_integers and as_integers["kept"] else None,
            lower_bits=lower_bits,
            agreement=checked.agreements[run_dir.ONNX],
            size=preprocessing.size,
            channels=preprocessing.channels,
        ),
    )
    return results


class AsLoaded(nn.Module):
    """A network as others load it from an export: images 0–1 are normalised by the numbers of preprocessing.json."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        assert network.normalisation
        both = network.normalisation.of_channels(image_channels(network))
        for name, values in zip(("mean", "std"), both, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


class _Checked:
    """The files that have been compared with a model on validation images, and how far they agree."""

    def __init__(self, model: Deployed, store: PreparedData) -> None:
        self._store = store
        self._chosen = convert.checked_positions(store)
        self._reference = convert.torch_logits(model, self.images())
        self._noise = convert.rounding_noise(model, self._reference, self.images())
        self.labels = np.asarray(store.labels("val")[self._chosen])
        self.agreements: dict[str, Any] = {}

    def images(self) -> Iterator[Images]:
        """Return the validation images on which models are compared."""
        return images_of(self._store, "val", self._chosen)

    def write(self, path: Path, content: bytes, logits: Logits) -> Logits:
        """Write a file whose model returns `logits`. Raises RunFailed if they are not the model's."""
        agreement = Agreement.of(self._reference, logits)
        agreement.check(path.name, self._noise)
        files.write_bytes(path, content)
        self.agreements[path.name] = vars(agreement)
        return logits


def _int8(
    folder: Path, graph: bytes, float_logits: Logits, checked: _Checked, experiment: Experiment, store: PreparedData
) -> dict[str, Any]:
    """Quantise a model, write it if it is asked for, or good enough and smaller, and return what was found out."""
    settings, threads = experiment.params.export, experiment.params.compute.threads
    quantised = int8.to_int8(graph, images_of(store, "train", int8.calibration_positions(store)))
    logits = convert.onnx_logits(quantised, checked.images(), threads)
    before, after = (100 * float((some.argmax(1) == checked.labels).mean()) for some in (float_logits, logits))
    found: dict[str, Any] = {
        "kept": settings.int8 == "on" or (before - after <= settings.max_drop and len(quantised) < len(graph)),
        "val_top1": after,
        "val_top1_float": before,
        "n_val": len(checked.labels),
        "bytes": len(quantised),
        "bytes_float": len(graph),
        "evaluation": None,
    }
    if found["kept"]:
        files.write_bytes(folder / run_dir.INT8, quantised)
        test = convert.onnx_logits(quantised, images_of(store, "test"), threads)
        metrics = classification_metrics(test, np.asarray(store.labels("test")))
        found["evaluation"] = _as_evaluated(metrics)
    return found


def _as_evaluated(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in AS_EVALUATED if name in metrics}


def _about(experiment: Experiment, job: StudentJob, record: dict[str, Any], store: PreparedData) -> dict[str, Any]:
    """Return what the model card says of data, teacher and student."""
    evaluation = read_evaluation(
        job.teacher.folder / run_dir.EVALUATION, f"run `iakd evaluate --run {job.teacher.folder}`"
    )
    student = read_evaluation(job.folder / run_dir.EVALUATION, f"run `iakd evaluate --run {job.folder}`")
    splits = store.manifest["splits"]
    transfer = experiment.params.distill.transfer
    checkpoint = job.teacher.network.checkpoint or job.teacher.network.callable
    teacher_record = files.read_object(job.teacher.folder / run_dir.RUN, f"run `{job.teacher.command}`")
    listed = len(store.classes) <= model_card.MAX_CLASSES
    return {
        "network": job.student,
        "teacher": job.teacher.network,
        "teacher_seed": job.teacher.seed,
        "teacher_top1": evaluation["top1"],
        "teacher_note": seen.note(job.teacher.network.name, teacher_record),
        "teacher_origin": f", imported from {Path(checkpoint).name}" if checkpoint else "",
        "method": job.method,
        "dataset": {
            "name": experiment.params.dataset.name,
            "about": f"{store.manifest['source']['about'].rstrip('.')}.",
        },
        "splits": ", ".join(f"{splits[name]['n']:,}" for name in SPLITS),
        "transfer": f" (students saw a part of those for training: {transfer})" if transfer else "",
        "classes": store.classes,
        "interval": model_card.accuracy_interval(student["top1"], student["n"]),
        "per_class": list(zip(store.classes, student["per_class_top1"], strict=True)) if listed else [],
        "record": record,
    }

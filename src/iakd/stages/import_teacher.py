"""Import a teacher: reads the data and a foreign checkpoint, writes results/<dataset>/teachers/<name>/seed<k>/.

Nothing is trained: the history is empty. The teacher is validated, and one that does no better than chance is refused.
"""

import contextlib
import logging
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from iakd import devices, files, models
from iakd.config import Params, Teacher
from iakd.config.networks import REGISTRY, TORCHVISION
from iakd.data.file_loader import make_loader
from iakd.data.sources.download import fetch
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.evaluation import plausibility
from iakd.evaluation.seen import count_seen
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, TeacherJob
from iakd.files import sha256_bytes, sha256_file
from iakd.models.checkpoints import read_checkpoint
from iakd.models.external.black_box import BlackBox, Program, load_weights_of_file
from iakd.models.external.torchvision import weights_address
from iakd.models.external_weights import fitted, load_external
from iakd.models.network import Network
from iakd.models.normalisation import adapt_input
from iakd.training.distributed import training_processes
from iakd.training.validation import validate

CACHE = Path(".cache/weights")
BATCH = 256

log = logging.getLogger(__name__)


def run(experiment: Experiment, job: TeacherJob) -> Path:
    """Import one teacher; of several processes, the first one does it."""
    return training_processes().on_main(lambda: _run(experiment, job))


def _run(experiment: Experiment, job: TeacherJob) -> Path:
    """Import one teacher, unless this very file has been imported already. Returns its folder.

    Raises UserError, and writes nothing, if the checkpoint is missing, unreadable or does not fit, or if its accuracy
    on the validation images is near chance.
    """
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    device = devices.set_up_device(experiment.params.compute)
    name = devices.device_name(device)
    known = _recorded(job)
    if known and run_dir.teacher_run(experiment, job, store.sha256, name, known).finished:
        log.info("%s: already imported", job.folder)
        return job.folder
    downloaded = job.state / "download"
    try:
        path = _locate(experiment.params, job.network, downloaded)
        network = None if path else models.build(job.network, store.image_shape[0], len(store.classes))
        # without a file, the weights are those that the user's function returns
        sha256 = sha256_file(path) if path else sha256_bytes(models.save_weights(network)) if network else ""
        attempt = run_dir.teacher_run(experiment, job, store.sha256, name, sha256)
        if attempt.finished:
            log.info("%s: already imported", job.folder)
            return job.folder
        with attempt.open():
            if path:
                network = _load(job.network, store.image_shape[0], len(store.classes), path)
            assert network is not None
            adapt_input(network, job.normalisation, store.mean, store.std)
            network.to(device)
            if isinstance(network, BlackBox):
                _check_outputs(network, store, device)
            workers = experiment.params.compute.workers
            metrics = validate(network, make_loader(store, "val", device, workers=workers), BATCH)
            _check(metrics, job, path, network, store, device, workers)
            log.info("%s: %.1f %% on validation", job.folder, metrics["val_top1"])
            seen = count_seen(job.network, store) or {}
            attempt.about |= {"trained_on": seen} if seen else {}
            if seen.get("test"):
                log.warning("%s: it was trained with %d of the test images", job.folder, seen["test"])
            return attempt.finish([], metrics, models.save_weights(network))
    finally:
        shutil.rmtree(downloaded, ignore_errors=True)


def _recorded(job: TeacherJob) -> str | None:
    """Return the hash of the imported checkpoint, if the same name can only ever mean the same file."""
    name = job.network.checkpoint or ""
    if not (name.startswith(TORCHVISION) or re.fullmatch(rf"{REGISTRY}[^@]*/\d+(/.*)?", name)):
        return None
    try:
        record = files.read_object(job.folder / run_dir.RUN, "", "inputs", "params")
    except UserError:
        return None
    inputs = record["inputs"] if isinstance(record["inputs"], dict) else {}
    return inputs.get("checkpoint") if record["params"] == job.settings else None


def imported(teacher: Teacher, channels: int, classes: int, params: Params) -> Network:
    """Return a teacher for images of its own normalisation, without data to check it on. Raises UserError as `run`."""
    with tempfile.TemporaryDirectory(prefix="iakd-") as folder:
        path = _locate(params, teacher, Path(folder))
        return _load(teacher, channels, classes, path) if path else models.build(teacher, channels, classes)


def _origin(teacher: Teacher) -> str:
    return f"teacher {teacher.name}: {teacher.origin}"


def _load(teacher: Teacher, channels: int, classes: int, path: Path) -> Network:
    """Return the teacher with the weights in a file, or that is a file."""
    if not teacher.black_box:
        return load_external(teacher, channels, classes, path, _origin(teacher))
    network = models.build(teacher, channels, classes)
    assert isinstance(network, BlackBox)
    if isinstance(network.body, Program):
        network.body.open(path.read_bytes(), _origin(teacher))
    else:
        origin = f"teacher {teacher.name}: checkpoint {teacher.checkpoint}"
        load_weights_of_file(network, read_checkpoint(path, origin), origin)
    return network


def _check_outputs(network: BlackBox, store: PreparedData, device: torch.device) -> None:
    """Raise UserError unless the outputs of a black box can teach: on some validation images, and on a single one."""
    images = np.arange(min(4, len(store.labels("val"))))
    for chosen in (images, images[:1]):
        with contextlib.closing(make_loader(store, "val", device, chosen, 0)) as loader:
            network.check_outputs(next(loader.plain(BATCH)).images, len(store.classes))


def _locate(params: Params, teacher: Teacher, folder: Path) -> Path | None:
    """Return the checkpoint as a file, downloading it if necessary: to `folder`, or to the cache of torchvision's
    weights. None: there is none.
    """
    name = teacher.checkpoint
    if name is None:
        return None
    if name.startswith(REGISTRY):
        from iakd.tracking.mlflow_client import download_weights

        return download_weights(name, params, folder)
    if name.startswith(TORCHVISION):
        url = weights_address(teacher.arch, name.removeprefix(TORCHVISION))
        published = re.search(r"-([0-9a-f]{8,})\.\w+$", url)  # SHA-256 in the file's name
        return fetch([url], published[1] if published else "", CACHE, "sha256", "the teacher's `checkpoint`")
    teacher.check_files()
    return teacher.path


def _check(
    metrics: dict[str, float],
    job: TeacherJob,
    path: Path | None,
    network: Network,
    store: PreparedData,
    device: torch.device,
    workers: int | None,
) -> None:
    """Raise UserError if the accuracies (percent, on validation images) are near chance, or if the weights are of
    another form of the network.
    """
    top1, balanced = metrics["val_top1"], metrics["val_balanced_accuracy"]
    labels, classes, origin = store.labels("val"), len(store.classes), _origin(job.network)
    near_chance = plausibility.is_near_chance(top1 / 100, balanced / 100, labels, classes)
    form = None
    known = job.network.black_box or (job.network.checkpoint or "").startswith(TORCHVISION)
    if path and not known:  # torchvision's weights are of its own networks
        log.info("%s: trying its weights in other forms of the network", job.folder)
        found = read_checkpoint(path, origin)
        load = partial(fitted, channels=store.image_shape[0], classes=classes, found=found, origin=origin)
        form = plausibility.fitting_form(network, job.network, load, store, device, workers)
    if near_chance:
        hint = plausibility.likely_cause(network, store, device, workers, form)
        raise UserError(
            f"{origin}: only {top1:.1f} % on the validation images, where chance is "
            f"{100 * plausibility.chance_accuracy(labels, classes):.1f} %; {hint}"
        )
    if form:
        raise UserError(
            f"{origin}: {top1:.1f} % on the validation images; with {form.change}, in which the same weights "
            f"compute something else, it would be {100 * form.accuracy:.1f} %: set it"
        )

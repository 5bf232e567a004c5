"""Import a teacher: reads the data and a foreign checkpoint, writes results/<dataset>/teachers/<name>/seed<k>/.

Nothing is trained: the history is empty. The teacher is validated, and one that does no better than chance is refused.
"""

import logging
import re
import shutil
from pathlib import Path

import torch

from iakd import files, models, runs
from iakd.data.download import fetch
from iakd.data.sets import image_set
from iakd.data.store import Store
from iakd.errors import UserError
from iakd.evaluation import plausibility
from iakd.files import digest, sha256_file
from iakd.models.foreign import load_foreign
from iakd.models.from_torchvision import weights_address
from iakd.models.network import Network
from iakd.models.normalisation import adapt_input
from iakd.params.teacher import REGISTRY, TORCHVISION
from iakd.plan import Plan, TeacherJob
from iakd.training import device as devices
from iakd.training.evaluation import validate
from iakd.training.parallel import processes

CACHE = Path(".cache/weights")
BATCH = 256

log = logging.getLogger(__name__)


def run(plan: Plan, job: TeacherJob) -> Path:
    """Import one teacher, see `_run`; of several processes, the first one does it."""
    return processes().lead(lambda: _run(plan, job))


def _run(plan: Plan, job: TeacherJob) -> Path:
    """Import one teacher, or leave it alone if this very file already is. Returns its folder.

    Raises UserError where the checkpoint is missing, unreadable or does not fit, and where its accuracy on the
    validation images is near chance; then nothing is written.
    """
    store = Store.open(plan.data.folder, settings=plan.data.settings)
    device = devices.set_up(plan.params.compute)
    known = _recorded(job)
    if known and _attempt(plan, job, store, known, device).finished:
        log.info("%s: already imported", job.folder)
        return job.folder
    downloaded = job.state / "download"
    try:
        path = _locate(plan, job, downloaded)
        attempt = _attempt(plan, job, store, sha256_file(path), device)
        if attempt.finished:
            log.info("%s: already imported", job.folder)
            return job.folder
        with attempt.open():
            network = load_foreign(job.network, store.image_shape[0], len(store.classes), path, _named(job))
            adapt_input(network, job.normalisation, store.mean, store.std)
            network.to(device)
            workers = plan.params.compute.workers
            metrics = validate(network, image_set(store, "val", device, workers=workers), BATCH)
            _check(metrics["val_top1"], job, network, store, device, workers)
            log.info("%s: %.1f %% on validation", job.folder, metrics["val_top1"])
            return attempt.finish([], metrics, models.save_weights(network))
    finally:
        shutil.rmtree(downloaded, ignore_errors=True)


def _attempt(plan: Plan, job: TeacherJob, store: Store, sha256: str, device: torch.device) -> runs.Run:
    inputs = {"data": store.sha256, "checkpoint": sha256}
    return runs.Run(
        path=job.path,
        stage="teach",
        key=digest([job.key, inputs]),
        params=job.settings,
        seed=job.seed,
        about={
            "dataset": plan.params.dataset.name,
            "teacher": job.network.name,
            "student": None,
            "method": "teacher",
            "origin": job.network.checkpoint,
        },
        inputs=inputs,
        device=devices.describe(device),
    )


def _recorded(job: TeacherJob) -> str | None:
    """The hash of the checkpoint that was imported, where the same name can only ever mean the same file."""
    name = job.network.checkpoint or ""
    if not (name.startswith(TORCHVISION) or re.fullmatch(rf"{REGISTRY}[^@]*/\d+(/.*)?", name)):
        return None
    try:
        record = files.read_json(job.folder / runs.RUN, "")
    except UserError:
        return None
    return record["inputs"].get("checkpoint") if record["params"] == job.settings else None


def _named(job: TeacherJob) -> str:
    return f"teacher {job.network.name}: checkpoint {job.network.checkpoint}"


def _locate(plan: Plan, job: TeacherJob, folder: Path) -> Path:
    """The checkpoint as a file, downloaded where need be: into `folder`, or where torchvision's are kept."""
    name = job.network.checkpoint or ""
    if name.startswith(REGISTRY):
        from iakd.tracking.registry import download

        return download(name, plan.params, folder)
    if name.startswith(TORCHVISION):
        url = weights_address(job.network.arch, name.removeprefix(TORCHVISION))
        published = re.search(r"-([0-9a-f]{8,})\.\w+$", url)  # SHA-256 in the file's name
        return fetch([url], published[1] if published else "", CACHE, "sha256", "the teacher's `checkpoint`")
    job.check_file()
    return Path(name).expanduser()


def _check(
    top1: float, job: TeacherJob, network: Network, store: Store, device: torch.device, workers: int | None
) -> None:
    """Raise UserError where `top1` (percent, on validation images) is near chance."""
    labels, classes = store.labels("val"), len(store.classes)
    if top1 < 100 * plausibility.needed(labels, classes):
        hint = plausibility.suspicion(network, store, device, workers)
        raise UserError(
            f"{_named(job)}: only {top1:.1f} % on the validation images, where chance is "
            f"{100 * plausibility.chance(labels, classes):.1f} %; {hint}"
        )

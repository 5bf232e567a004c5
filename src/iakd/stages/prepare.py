"""prepare: read the data set, split it and store it as arrays with a manifest."""

import logging
from pathlib import Path

from iakd import files
from iakd.data.sources import SOURCES
from iakd.data.store import MANIFEST, SPLITS, Store, write
from iakd.errors import UserError
from iakd.plan import Job, Plan

log = logging.getLogger(__name__)


def run(plan: Plan) -> Path:
    """Bring results/<dataset>/data/ up to date and return the path of its manifest.

    Intact data of the same settings and source code are left alone. Raises UserError for unusable data.
    """
    job, settings = plan.data, plan.params.dataset
    with files.exclusive(job.state / "lock", f"{job.folder}: another process is preparing it; wait for it to end"):
        if not _current(job):
            write(job.folder, SOURCES[settings.source].read(settings), settings, job.key)
            _describe(Store.open(job.folder, check=False))
    return job.folder / MANIFEST


def _current(job: Job) -> bool:
    try:
        return Store.open(job.folder).manifest.get("key") == job.key
    except UserError:  # missing, half-written or damaged: made anew
        return False


def _describe(store: Store) -> None:
    channels, height, width = store.image_shape
    counts = ", ".join(f"{store.manifest['splits'][split]['n']} {split}" for split in SPLITS)
    log.info(f"{store.folder}: {counts} images of {channels}×{height}×{width}, {len(store.classes)} classes")
    for problem in store.manifest["problems"]:
        log.warning(f"{store.folder}: {problem}")

"""prepare: read the data set, split it and store it as arrays with a manifest."""

import logging
from pathlib import Path

from iakd import files
from iakd.data.published import fingerprint
from iakd.data.sources import SOURCES
from iakd.data.store import MANIFEST, SPLITS, Store
from iakd.data.writer import write
from iakd.errors import UserError
from iakd.plan import Job, Plan

log = logging.getLogger(__name__)


def run(plan: Plan) -> Path:
    """Bring results/<dataset>/data/ up to date and return the path of its manifest.

    Intact data of the same settings, source code and files at `dataset.path` are left alone. Raises
    UserError for unusable data.
    """
    job, settings = plan.data, plan.params.dataset
    with files.exclusive(job.state / "lock", f"{job.folder}: another process is preparing it; wait for it to end"):
        found = fingerprint(settings)
        if not _current(job, found):
            write(job.folder, SOURCES[settings.source].read(settings), settings, job.key, found)
            _describe(Store.open(job.folder, check=False))
    return job.folder / MANIFEST


def _current(job: Job, found: str | None) -> bool:
    try:
        manifest = Store.open(job.folder).manifest
    except UserError:  # missing, half-written or damaged: made anew
        return False
    same_files = found is None or manifest.get("fingerprint") == found  # files that are gone need not be read again
    return manifest.get("key") == job.key and same_files


def _describe(store: Store) -> None:
    channels, height, width = store.image_shape
    counts = ", ".join(f"{store.manifest['splits'][split]['n']} {split}" for split in SPLITS)
    log.info(f"{store.folder}: {counts} images of {channels}×{height}×{width}, {len(store.classes)} classes")
    for problem in store.manifest["problems"]:
        log.warning(f"{store.folder}: {problem}")

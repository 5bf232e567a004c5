"""Prepare the data: read the data set, split it and store it as arrays with a manifest."""

import logging
from pathlib import Path

from iakd import files
from iakd.data import sources
from iakd.data.earlier_results import describe_stale, refuse_other_data
from iakd.data.sources.download import fingerprint
from iakd.data.store import MANIFEST, SPLITS, PreparedData
from iakd.data.writer import write_store
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, Job

log = logging.getLogger(__name__)


def run(experiment: Experiment) -> Path:
    """Bring results/<dataset>/data/ up to date and return the path of its manifest.

    Intact data of the same settings, source code and files at `dataset.path` are kept. Logs which earlier trainings
    used other data. Raises UserError for unusable data, and where another data set has results of this name.
    """
    job, settings = experiment.data, experiment.params.dataset
    refuse_other_data(experiment)
    with files.exclusive(
        job.state / run_dir.LOCK,
        f"{job.folder}: another process is preparing it; wait for it to end",
        run_dir.SECONDS_FOR_ORPHANS,
    ):
        found = fingerprint(settings)
        if not _current(job, found):
            write_store(job.folder, sources.read(settings), settings, job.key, found)
            _describe(PreparedData.open(job.folder, check=False))
        stale = describe_stale(experiment, PreparedData.open(job.folder, check=False).sha256)
        if stale:
            log.warning(stale)
    return job.folder / MANIFEST


def _current(job: Job, found: str | None) -> bool:
    try:
        manifest = PreparedData.open(job.folder).manifest
    except UserError:  # missing, incomplete or damaged
        return False
    same_files = found is None or manifest.get("fingerprint") == found  # deleted files need not be read again
    return manifest.get("key") == job.key and same_files


def _describe(store: PreparedData) -> None:
    channels, height, width = store.image_shape
    counts = ", ".join(f"{store.manifest['splits'][split]['n']} {split}" for split in SPLITS)
    log.info(f"{store.folder}: {counts} images of {channels}×{height}×{width}, {len(store.classes)} classes")
    for problem in store.manifest["problems"]:
        log.warning(f"{store.folder}: {problem}")

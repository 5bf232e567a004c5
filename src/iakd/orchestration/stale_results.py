"""Find results that Snakemake did not see being made: pulled by DVC, made by plain commands, or by another checkout.

Snakemake notices changed settings by its own records only. Where these are missing, or describe other results than
those on disk, it would take whatever it finds for current. The run's own record (run.json) knows better.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, Job
from iakd.experiment.run_dir import EVALUATION, RUN

Records = Callable[[Path], list[str] | None]  # the parameters that Snakemake recorded for a file, each as its repr()


def check(experiment: Experiment, records: Records) -> None:
    """Raise UserError where results of other settings would be taken for current.

    In a DVC stage such results are marked as missing instead: DVC can restore them, and is about to rebuild them.
    DVC has also just checked the results of the stages before, so where Snakemake has no record of any result, their
    modification times are set to say so.
    """
    unseen = [job for job in other_settings(experiment) if not _change_is_seen(job, records)]
    if "DVC_STAGE" not in os.environ:
        refuse(unseen)
        return
    for job in unseen:
        _record(job).unlink()
    if all(records(_record(job)) is None for job in _jobs(experiment)):
        _date(experiment)


def refuse(jobs: list[Job]) -> None:
    """Raise UserError if there are any `jobs`: their results would wrongly be taken for current ones."""
    if jobs:
        more = f" (and {len(jobs) - 1} more)" if len(jobs) > 1 else ""
        raise UserError(
            f"{jobs[0].folder}{more}: made with other settings; restore these, or delete the folder to rebuild it"
        )


def other_settings(experiment: Experiment) -> list[Job]:
    """Return the jobs whose results exist but, by their own record, were made with other settings."""
    jobs = _jobs(experiment)
    return [job for job in jobs if _made_with(job) not in (None, json.loads(json.dumps(job.settings)))]


def _jobs(experiment: Experiment) -> list[Job]:
    return [experiment.data, *experiment.studies, *experiment.trained]


def _record(job: Job) -> Path:
    return job.folder / (MANIFEST if job.stage == "prepare" else RUN)


def _made_with(job: Job) -> Any:
    """Return the settings behind the results of `job`, as far as `job.settings` names them; None if unknown."""
    try:
        record = json.loads(_record(job).read_text())
        if job.stage == "prepare":
            return record["settings"]
        return {name: record["params"].get(name) for name in job.settings}
    except (OSError, ValueError, KeyError):
        return None


def _change_is_seen(job: Job, records: Records) -> bool:
    """Whether Snakemake recorded other parameters for the results of `job` than it now compares them with."""
    recorded = records(_record(job))
    return recorded is not None and not {repr(text) for text in job.watched} <= set(recorded)


def _date(experiment: Experiment) -> None:
    """Date the results in the order of the chain, as if each had just been made from those before."""
    now = time.time()
    links = list(_links(experiment))
    for position, link in enumerate(links):
        for path in link:
            os.utime(path, (now, now - len(links) + position))


def _links(experiment: Experiment) -> Iterator[list[Path]]:
    for folders in (
        [experiment.data.folder],
        [job.folder for job in experiment.teachers],
        [job.folder for job in experiment.studies],
        [job.folder for job in experiment.students],
    ):
        yield [path for folder in folders for path in folder.glob("**/*") if path.name != EVALUATION]
    yield [path for job in experiment.trained for path in job.folder.glob(EVALUATION)]
    for folder in (experiment.evaluation, experiment.report):
        yield list(folder.glob("**/*"))

"""Results that Snakemake did not see being made: pulled by DVC, made by plain commands, or by another checkout.

Snakemake notices changed settings by its own records only. Where there are none, or they tell of other results than
those that are there, it would take whatever it finds for current. The runs' own records know better.
"""

import json
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, Job
from iakd.experiment.run_dir import RUN

EVALUATION = "evaluation.json"
RECORDS = Path(".snakemake/metadata")
NAME = 254  # characters of a name in that folder; Snakemake cuts longer ones into folders


def check(experiment: Experiment) -> None:
    """Raise UserError where results of other settings would be taken for current.

    Not in a stage of DVC, which can bring them back and is about to make them anew: there they are marked as missing.
    And DVC has just checked the results of the stages before; without any record, their order in time says so.
    """
    unseen = [job for job in other_settings(experiment) if not _change_is_seen(job)]
    if "DVC_STAGE" not in os.environ:
        refuse(unseen)
        return
    for job in unseen:
        _record(job).unlink()
    if not (RECORDS.exists() and any(RECORDS.iterdir())):
        _date(experiment)


def refuse(jobs: list[Job]) -> None:
    """Raise UserError if there are any `jobs`: their results would wrongly be taken for current ones."""
    if jobs:
        more = f" (and {len(jobs) - 1} more)" if len(jobs) > 1 else ""
        raise UserError(
            f"{jobs[0].folder}{more}: made with other settings; set them back, or delete the folder to make it anew"
        )


def other_settings(experiment: Experiment) -> list[Job]:
    """The jobs whose results are there but, by their own record, were made with other settings."""
    jobs = (experiment.data, *experiment.studies, *experiment.trained)
    return [job for job in jobs if _made_with(job) not in (None, json.loads(json.dumps(job.settings)))]


def _record(job: Job) -> Path:
    return job.folder / (MANIFEST if job.stage == "prepare" else RUN)


def _made_with(job: Job) -> Any:
    """The settings behind the results of `job`, as far as `job.settings` names them; None if unknown."""
    try:
        record = json.loads(_record(job).read_text())
        if job.stage == "prepare":
            return record["settings"]
        return {name: record["params"].get(name) for name in job.settings}
    except (OSError, ValueError, KeyError):
        return None


def _change_is_seen(job: Job) -> bool:
    """Whether Snakemake's record of the results of `job` has another key than the one it compares with."""
    name = urlsafe_b64encode(str(_record(job)).encode()).decode()
    *folders, last = [name[i : i + NAME] for i in range(0, len(name), NAME)]
    try:
        record = json.loads(RECORDS.joinpath(*(f"@{folder}" for folder in folders), last).read_text())
    except (OSError, ValueError):
        return False
    return not any(job.watched_key in value for value in record["params"])


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

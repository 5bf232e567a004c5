"""Find results that Snakemake did not see being made: pulled by DVC, made by plain commands, or by another checkout.

Snakemake notices changed settings by its own records only. Where these are missing, or describe other results than
those on disk, it would take whatever it finds for current. The run's own record (run.json) knows better.

It notices changed inputs by modification times, which mean nothing after the clock was wrong. Again the run's own
record decides: it has the hashes of what the run was made from.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from iakd import files
from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS, STATE, Experiment, Job, StudentJob, StudyJob, TeacherJob
from iakd.experiment.run_dir import EVALUATION, EXPORTED, LATENCY, METRICS, RUN
from iakd.tuning.results import with_found_settings

LOGS = Path("logs")  # of the workflow's jobs, with a benchmark of each, which Snakemake counts among its outputs
LONG_AGO = 1.0  # seconds since 1970; to Snakemake, 0 would mean that there is no such file

log = logging.getLogger(__name__)


class Records(Protocol):
    """Snakemake's own records of the files that it has made."""

    def params(self, path: Path) -> list[str] | None:
        """Return the parameters recorded for a file, each as its repr(); None without a record."""
        ...

    def forget(self, path: Path) -> None:
        """Delete the record of a file."""
        ...


def check(experiment: Experiment, records: Records) -> None:
    """Raise UserError where results of other settings would be taken for current; have Snakemake see all other changes.

    In a DVC stage such results are marked as missing instead: DVC can restore them, and is about to rebuild them.
    DVC has also just checked the results of the stages before, so where Snakemake has no record of any result, their
    modification times are set to say so.
    """
    others = other_settings(experiment)
    unseen = [job for job in others if not _change_is_seen(job, records)]
    if "DVC_STAGE" in os.environ:
        for job in unseen:
            _record(job).unlink()
        if all(records.params(_record(job)) is None for job in _jobs(experiment)):
            _date(experiment)
    else:
        refuse(unseen)
    outdated = list(_made_from_others(experiment, others))
    if _in_future(experiment):
        log.warning("some results are dated in the future (was the clock wrong?): their contents decide")
        _date(experiment)
        outdated.append(experiment.evaluation / METRICS)  # it has no record of what it was made from
    for path in outdated:
        if path.exists():
            records.forget(path)
            os.utime(path, (LONG_AGO, LONG_AGO))  # older than what it is made from


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
    return [experiment.data, *experiment.studies, *experiment.trained, *experiment.exports]


def _record(job: Job) -> Path:
    return job.folder / {"prepare": MANIFEST, "export": EXPORTED}.get(job.stage, RUN)


def _made_with(job: Job) -> Any:
    """Return the settings behind the results of `job`, as far as `job.settings` names them; None if unknown."""
    record = _read(_record(job))
    if job.stage == "prepare":
        return record.get("settings")
    params = record.get("params")
    return {name: params.get(name) for name in job.settings} if isinstance(params, dict) else None


def _change_is_seen(job: Job, records: Records) -> bool:
    """Whether Snakemake recorded other parameters for the results of `job` than it now compares them with."""
    recorded = records.params(_record(job))
    return recorded is not None and not {repr(text) for text in job.watched} <= set(recorded)


def _made_from_others(experiment: Experiment, others: list[Job]) -> Iterator[Path]:
    """Yield the results that, by their own records, were made from other inputs than those on disk.

    Except those of the jobs `others`, which are made again anyway.
    """
    data = _read(experiment.data.folder / MANIFEST).get("sha256")
    teachers = {job.path: _read(job.folder / RUN).get("model_sha256") for job in experiment.teachers}
    found: dict[str, dict[str, Any]] = {}  # by the path of a study
    paths = {job.path for job in others}
    for job in (*experiment.studies, *experiment.trained):
        record = _read(job.folder / RUN)
        fits = _same(record.get("inputs"), {"data": data, **_origin(job, teachers)})
        if isinstance(job, StudentJob) and job.study:
            if job.study.path not in found:
                found[job.study.path] = _found_for(job)
            fits = fits and _same(record.get("params"), found[job.study.path])
        if not fits and job.path not in paths:
            yield job.folder / RUN
        measured = {"data_sha256": data, "model_sha256": record.get("model_sha256")}
        if isinstance(job, TeacherJob | StudentJob) and not _same(_read(job.folder / EVALUATION), measured):
            yield job.folder / EVALUATION
    for export in experiment.exports:
        models = _read(export.folder / EXPORTED).get("models")
        for job in export.students:
            present = {"model_sha256": _read(job.folder / RUN).get("model_sha256")}
            for model in models if isinstance(models, list) else []:
                is_this = isinstance(model, dict) and (model.get("method"), model.get("seed")) == (job.label, job.seed)
                if is_this and not _same(model, present):
                    yield export.folder / EXPORTED


def _origin(job: Job, teachers: dict[str, str | None]) -> dict[str, str | None]:
    """Return the hash of what is there for `job` to be made from, besides the data; None: unknown."""
    if isinstance(job, TeacherJob):
        path = job.network.path
        return {"checkpoint": files.sha256_file(path) if path and path.is_file() else None}
    assert isinstance(job, StudyJob | StudentJob)
    return {"teacher": teachers[job.teacher.path]}


def _found_for(job: StudentJob) -> dict[str, Any]:
    """Return the settings that a study has found for a student and its other seeds; empty if unknown."""
    with suppress(UserError, OSError):
        found = with_found_settings(job)
        return {"method": found.method.settings(), "recipe": found.recipe.model_dump(mode="json")}
    return {}


def _same(recorded: Any, present: dict[str, Any]) -> bool:
    """Whether a record has what is present, as far as both are known."""
    known = recorded if isinstance(recorded, dict) else {}
    return all(known.get(name) is None or value is None or known[name] == value for name, value in present.items())


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none."""
    with suppress(OSError, UserError):
        return files.read_object(path, "")
    return {}


def _now() -> float:
    """Return the time by the clock of the file system, which may be that of another machine."""
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=STATE) as probe:
        return os.fstat(probe.fileno()).st_mtime


def _in_future(experiment: Experiment) -> bool:
    now = _now()
    return any(path.stat().st_mtime > now for link in _links(experiment) for path in link if path.exists())


def _date(experiment: Experiment) -> None:
    """Date the results in the order of the chain, as if each had just been made from those before."""
    now = _now()
    links = list(_links(experiment))
    for position, link in enumerate(links):
        for path in link:
            with suppress(FileNotFoundError):  # a temporary file, or a link to nothing
                os.utime(path, (now, now - len(links) + position))


def _links(experiment: Experiment) -> Iterator[list[Path]]:
    """Yield the files of each link of the chain, with the benchmarks of its jobs."""
    for jobs in ([experiment.data], experiment.teachers, experiment.studies, experiment.students):
        products = [path for job in jobs for path in job.folder.glob("*") if path.name != EVALUATION]
        yield [*products, *(LOGS / f"{job.path}.tsv" for job in jobs)]
    evaluations = [job.folder / EVALUATION for job in experiment.trained]
    yield [*evaluations, *(LOGS / f"{job.path}.evaluate.tsv" for job in experiment.trained)]
    exports = experiment.exports
    files_of_exports = [path for job in exports for path in job.folder.glob("**/*")]
    yield [*files_of_exports, *(LOGS / f"{job.path}.tsv" for job in exports)]
    latency = experiment.export_folder / LATENCY
    yield [latency, LOGS / latency.relative_to(RESULTS).with_suffix(".tsv")]
    for folder in (experiment.evaluation, experiment.report):
        yield list(folder.glob("**/*"))

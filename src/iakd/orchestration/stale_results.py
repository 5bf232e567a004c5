"""Decide by content which results are current, where Snakemake did not see them being made.

They may have been pulled or checked out by DVC, made by plain commands, by a workflow that was killed meanwhile, or
damaged since.

Snakemake notices changed settings by its own records only. Where these are missing, or describe other results than
those on disk, it would take whatever it finds for current, or make again what is there. The results' own records (such
as run.json) know better.

It notices changed inputs by modification times, which mean nothing after a checkout, or after the clock was wrong.
Again the results' own records decide: they have the hashes of what the results were made from.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from iakd import files
from iakd.data.earlier_results import trainings_on
from iakd.data.sources.download import fingerprint
from iakd.data.store import MANIFEST, PreparedData
from iakd.errors import UserError
from iakd.evaluation import made_from
from iakd.evaluation.record import read_evaluation
from iakd.experiment.jobs import (
    LOGS,
    RESULTS,
    STATE,
    WORKFLOW_LOCK,
    Experiment,
    ExportJob,
    Job,
    StudentJob,
    StudyJob,
    TeacherJob,
    in_the_clear,
)
from iakd.experiment.run_dir import (
    EVALUATION,
    EXPORT,
    EXPORTED,
    HISTORY,
    LATENCY,
    METRICS,
    MODEL,
    REPORT,
    RUN,
    candidate,
    damaged_files,
    damaged_products,
)
from iakd.stages import latency
from iakd.tuning.results import is_complete, with_found_settings

LONG_AGO = 1.0  # seconds since 1970; to Snakemake, 0 would mean that there is no such file

REBUILD = "IAKD_REBUILD"  # environment variable: 1 to lose results that were made with other settings
SHOWN = 3  # differences that a message names
DAMAGED_RECORD = (UserError, OSError, KeyError, TypeError, ValueError, AttributeError)  # what reading one may raise

log = logging.getLogger(__name__)


class Records(Protocol):
    """Snakemake's own records of the files that it has made."""

    def params(self, path: Path) -> list[str] | None:
        """Return the parameters recorded for a file, each as its repr(); None without a record."""
        ...

    def is_incomplete(self, path: Path) -> bool:
        """Whether a job that makes the file was started, and never seen to end; Snakemake then runs it again."""
        ...

    def forget(self, path: Path) -> None:
        """Delete the record of a file."""
        ...


class OnDisk:
    """The results that are there, and what they were made from, by their own records. Each record is read once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._read: dict[Path, dict[str, Any]] = {}
        self._unreadable: set[Path] = set()  # records that may be whole
        self._found: dict[str, StudentJob | None] = {}  # by a study's path: one of its students as it is to be trained
        self._checks: dict[Path, Callable[[], bool]] = {
            experiment.data.folder / MANIFEST: self._data_fit,
            **{job.folder / RUN: partial(self._study_fits, job) for job in experiment.studies},
            **{job.folder / RUN: partial(self._run_fits, job) for job in experiment.trained},
            **{job.folder / EVALUATION: partial(self._evaluation_fits, job) for job in experiment.trained},
            **{job.folder / EXPORTED: partial(self._export_fits, job) for job in experiment.exports},
            experiment.export_folder / LATENCY: self._latency_fits,
            experiment.evaluation / METRICS: lambda: made_from.comparison(experiment).is_there,
            experiment.report / REPORT: lambda: made_from.report(experiment).is_there,
        }

    def record(self, path: Path) -> dict[str, Any]:
        """Return the JSON object in a file; empty if there is none, or none that can be read."""
        if path not in self._read:
            self._read[path] = {}
            try:
                with suppress(UserError):
                    self._read[path] = files.read_object(path, "")
            except OSError:
                self._unreadable.add(path)
        return self._read[path]

    def of(self, job: Job) -> dict[str, Any]:
        """Return the record of a job's results; empty if there is none."""
        return self.record(_record_of(job))

    def made_with(self, job: Job) -> Any:
        """Return the settings behind the results of `job`, as far as `job.settings` names them; None if unknown."""
        record = self.of(job)
        if job.stage == "prepare":
            return record.get("settings")
        params = record.get("params")
        return {name: params.get(name) for name in job.settings} if isinstance(params, dict) else None

    def inputs(self, job: Job) -> dict[str, str | None]:
        """Return the hashes of what is there for `job` to be made from; None: unknown."""
        inputs = {"data": self._data}
        if isinstance(job, TeacherJob) and job.network.imported:
            inputs["checkpoint"] = self._checkpoints[job.path]
        elif isinstance(job, StudyJob | StudentJob) and job.method.needs_teacher:
            inputs["teacher"] = self.of(job.teacher).get("model_sha256")
        return inputs

    def as_found(self, job: StudentJob) -> StudentJob | None:
        """Return a student with the settings that its study has found; None if they are unknown."""
        if job.study is None:
            return job
        if job.study.path not in self._found:
            self._found[job.study.path] = None
            with suppress(UserError, OSError):
                self._found[job.study.path] = with_found_settings(job)
        found = self._found[job.study.path]
        return found and replace(job, method=found.method, recipe=found.recipe)

    def knows(self, products: list[Path]) -> bool:
        """Whether there are records of the products of one of Snakemake's jobs, and none so far was unreadable."""
        recorded = [path for path in products if path in self._checks and path.exists()]
        for path in recorded:
            self.record(path)
        return bool(recorded) and not self._unreadable

    def fit(self, products: list[Path]) -> bool:
        """Whether the products of one of Snakemake's jobs are what it would make now, complete and undamaged.

        They must name the very settings, sources and inputs, and fit their own hashes.
        """
        checks = [self._checks[path] for path in products if path in self._checks]
        try:
            return bool(checks) and all(check() for check in checks)
        except DAMAGED_RECORD:
            return False

    def _data_fit(self) -> bool:
        job = self.experiment.data
        manifest = PreparedData.open(job.folder, settings=job.settings).manifest
        read = fingerprint(self.experiment.params.dataset)
        return manifest["key"] == job.key and read in (None, manifest.get("fingerprint"))

    def _study_fits(self, job: StudyJob) -> bool:
        key = files.digest([job.key, self.of(job)["inputs"]])
        return self._trained(job, key) and is_complete(job.folder, self.experiment.params.tune.trials)

    def _run_fits(self, job: TeacherJob | StudentJob) -> bool:
        inputs = self.of(job)["inputs"]
        if isinstance(job, TeacherJob):
            return self._trained(job, files.digest([job.key, inputs]))
        found = self.as_found(job)
        return found is not None and self._trained(job, found.training_key(inputs, job.seed, job.path))

    def _trained(self, job: Job, key: str) -> bool:
        record, present = self.of(job), self.inputs(job)
        if present.get("checkpoint", "") is None:  # is no file: its name says what it is
            present["checkpoint"] = record["inputs"]["checkpoint"]
        return record["key"] == key and record["inputs"] == present and not damaged_products(job.folder, record)

    def _evaluation_fits(self, job: TeacherJob | StudentJob) -> bool:
        evaluation = read_evaluation(job.folder / EVALUATION, "")
        key = made_from.evaluation_key(self.experiment, self.of(job)["model_sha256"], str(self._data))
        return bool(evaluation["key"] == key)

    def _export_fits(self, job: ExportJob) -> bool:
        index = self.of(job)
        present = [candidate(one.label, one.seed, self.record(one.folder / METRICS)) for one in job.students]
        return (
            index["params"] == job.settings
            and index["candidates"] == present
            and all(self._model_fits(job, model) for model in index["models"])
        )

    def _model_fits(self, job: ExportJob, model: dict[str, Any]) -> bool:
        (student,) = [one for one in job.students if (one.label, one.seed) == (model["method"], model["seed"])]
        trained, folder = self.of(student), job.folder / model["folder"]
        key = job.model_key(trained)
        evaluation = files.digest(self.record(student.folder / EVALUATION))
        record = self.record(folder / EXPORT)
        return (
            (record["key"], record["evaluation_sha256"]) == (key, evaluation)
            and model["key"] == key
            and not damaged_files(folder, record["files"])
        )

    def _latency_fits(self) -> bool:
        measured = self.record(self.experiment.export_folder / LATENCY)
        return bool(measured["networks"] == latency.networks_sha256(self.experiment))

    def made_from_others(self, others: list[Job]) -> Iterator[Path]:
        """Yield the results that, by their own records, were made from other inputs than those on disk.

        Except those of the jobs `others`, which are made again anyway.
        """
        experiment, paths = self.experiment, {job.path for job in others}
        for job in (*experiment.studies, *experiment.trained):
            record = self.of(job)
            fits = _same(record.get("inputs"), self.inputs(job))
            if isinstance(job, StudentJob) and job.study:
                found = self.as_found(job)
                fits = fits and _same(record.get("params"), found.used if found else {})
            if not fits and job.path not in paths:
                yield job.folder / RUN
            measured = {"data_sha256": self._data, "model_sha256": record.get("model_sha256")}
            if isinstance(job, TeacherJob | StudentJob) and not _same(self.record(job.folder / EVALUATION), measured):
                yield job.folder / EVALUATION
        for export in experiment.exports:
            models = self.of(export).get("models")
            for student in export.students:
                this = {"method": student.label, "seed": student.seed}
                present = {"model_sha256": self.of(student).get("model_sha256")}
                for model in models if isinstance(models, list) else []:
                    if isinstance(model, dict) and this.items() <= model.items() and not _same(model, present):
                        yield export.folder / EXPORTED
        for product, summary in (
            (experiment.evaluation / METRICS, made_from.comparison),
            (experiment.report / REPORT, made_from.report),
        ):
            if product.with_name(made_from.RECORD).exists() and summary(experiment).is_of_others:
                yield product

    def damaged(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield the results whose files are not, or no longer, those their own records have the hashes of; with these.

        Prepared arrays may be large: only those written to since are looked at. A command that reads them looks at all.
        """
        experiment = self.experiment
        records: dict[Path, Callable[[], list[str]]] = {  # and what of the files that they describe is damaged
            experiment.data.folder / MANIFEST: self._damaged_arrays,
            **{
                job.folder / RUN: partial(self._damaged_products, job)
                for job in (*experiment.studies, *experiment.trained)
            },
            **{job.folder / EVALUATION: partial(self._damaged_evaluation, job) for job in experiment.trained},
            **{job.folder / EXPORTED: partial(self._damaged_exports, job) for job in experiment.exports},
            experiment.export_folder / LATENCY: self._damaged_latency,
        }
        for path, check in records.items():
            if path.exists() and (names := self._damaged_files(path, check)):
                yield path, names
        for folder, product in ((experiment.evaluation, METRICS), (experiment.report, REPORT)):
            if (folder / product).exists() and (names := made_from.damaged(folder)):
                yield folder / product, names

    def _damaged_files(self, path: Path, check: Callable[[], list[str]]) -> list[str]:
        try:
            names = check()
        except OSError:
            return []
        except DAMAGED_RECORD:  # it is none, or that of something else
            names = [path.name]
        return [] if path in self._unreadable else names

    def _damaged_arrays(self) -> list[str]:
        path = self.experiment.data.folder / MANIFEST
        hashes = {
            name: sha256 for split in self.record(path)["splits"].values() for name, sha256 in split["files"].items()
        }
        written = path.stat().st_mtime_ns
        since = {name: hashes[name] for name in hashes if path.with_name(name).stat().st_mtime_ns > written}
        return damaged_files(path.parent, since)

    def _damaged_products(self, job: Job) -> list[str]:
        seen = (MODEL, HISTORY, METRICS)  # by Snakemake, if they are missing
        record = self.of(job)
        if not isinstance(record["params"], dict):
            return [RUN]
        damaged = damaged_products(job.folder, record)
        return [name for name in damaged if name not in seen or (job.folder / name).exists()]

    def _damaged_evaluation(self, job: Job) -> list[str]:
        return [] if "top1" in self.record(job.folder / EVALUATION) else [EVALUATION]

    def _damaged_exports(self, job: ExportJob) -> list[str]:
        found = []
        for folder in [job.folder / model["folder"] for model in self.of(job)["models"]]:
            hashes = self.record(folder / EXPORT).get("files")
            names = [EXPORT] if hashes is None else damaged_files(folder, hashes)
            found += [f"{folder.name}/{name}" for name in names]
        return found

    def _damaged_latency(self) -> list[str]:
        return [] if isinstance(self.record(self.experiment.export_folder / LATENCY)["models"], list) else [LATENCY]

    @cached_property
    def _data(self) -> str | None:
        return self.of(self.experiment.data).get("sha256")

    @cached_property
    def _checkpoints(self) -> dict[str, str | None]:
        """The hashes of the teachers' checkpoints, where they are files; None where they are not."""
        paths = {job.path: job.network.path for job in self.experiment.teachers}
        return {name: files.sha256_file(path) if path and path.is_file() else None for name, path in paths.items()}


def check(experiment: Experiment, records: Records) -> None:
    """Raise UserError where results of other settings would be taken for current; have Snakemake see all other changes.

    Prepared data on which nothing was trained are made again, and so is everything if $IAKD_REBUILD says yes. In a DVC
    stage such results are marked as missing instead: DVC can restore them, and is about to rebuild them.
    """
    on_disk = OnDisk(experiment)
    others = other_settings(experiment, on_disk)
    unseen = [job for job in others if not _change_is_seen(job, records)]
    if "DVC_STAGE" in os.environ:
        for job in unseen:
            _record_of(job).unlink()
    elif (unseen == [experiment.data] and not any(trainings_on(experiment))) or os.environ.get(REBUILD) == "1":
        for job in unseen:
            for path in job.folder.glob("*"):
                records.forget(path)  # Snakemake then decides by content, and makes it again
    else:
        refuse(unseen, _what_is_lost(on_disk, others))
    if files.held(WORKFLOW_LOCK):
        return  # the workflow that runs decides; results that it is writing are not damaged
    outdated = list(on_disk.made_from_others(others))
    for path, damaged in on_disk.damaged():
        log.warning("%s: missing or damaged, made again", ", ".join(str(path.parent / name) for name in damaged))
        outdated.append(path)
    if _in_future(experiment):
        log.warning("some results are dated in the future (was the clock wrong?): their contents decide")
        _date(experiment)
    for path in outdated:
        if path.exists():
            records.forget(path)
            os.utime(path, (LONG_AGO, LONG_AGO))  # older than what it is made from


def refuse(jobs: list[Job], lost: str = "") -> None:
    """Raise UserError if there are any `jobs`: their results would wrongly be taken for current ones.

    `lost` says what differs, what would be lost by making them again, and how to do that.
    """
    if jobs:
        more = f" (and {len(jobs) - 1} more)" if len(jobs) > 1 else ""
        remedy = lost or "; restore these, or delete the folder to rebuild it"
        raise UserError(f"{jobs[0].folder}{more}: made with other settings{remedy}")


def _what_is_lost(on_disk: OnDisk, others: list[Job]) -> str:
    """Return what a message says after `made with other settings`, for results that can be made again."""
    changed = [change for job in others[:1] for change in _changes(on_disk.made_with(job), job)]
    told = ", ".join(changed[:SHOWN]) + (" …" if len(changed) > SHOWN else "")
    trained = [on_disk.of(job) for job in others if job.stage not in ("prepare", "export")]
    hours = sum(seconds for record in trained if isinstance(seconds := record.get("wall_seconds"), int | float)) / 3600
    what = f"{files.plural(len(trained), 'training')} ({hours:.1f} h)" if trained else "these results"
    return (
        f" ({told}); restore these settings, or give the data another dataset.name, to keep {what}; to lose them and "
        f"make all again, run with {REBUILD}=1"
    )


def _changes(before: Any, job: Job) -> list[str]:
    """Return what differs between the settings of results and those of their job: `name old → new`."""
    section = {"prepare": "dataset"}.get(job.stage)
    texts = [in_the_clear({section: values} if section else values, "") for values in (before, job.settings)]
    old, new = (dict(text.split("=", 1) for text in one) for one in texts)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return [f"{name} {old.get(name, 'not set')} → {new.get(name, 'not set')}" for name in names]


def other_settings(experiment: Experiment, on_disk: OnDisk | None = None) -> list[Job]:
    """Return the jobs whose results exist but, by their own record, were made with other settings."""
    on_disk = on_disk or OnDisk(experiment)
    jobs = [experiment.data, *experiment.studies, *experiment.trained, *experiment.exports]
    return [job for job in jobs if on_disk.made_with(job) not in (None, json.loads(json.dumps(job.settings)))]


def _record_of(job: Job) -> Path:
    return job.folder / {"prepare": MANIFEST, "export": EXPORTED}.get(job.stage, RUN)


def _change_is_seen(job: Job, records: Records) -> bool:
    """Whether Snakemake will make the results of `job` again.

    Because it recorded other parameters for them than it now compares them with, or never saw their job end.
    """
    path = _record_of(job)
    if records.is_incomplete(path):
        return True
    recorded = records.params(path)
    return recorded is not None and not {repr(text) for text in job.watched} <= set(recorded)


def _same(recorded: Any, present: dict[str, Any]) -> bool:
    """Whether a record has what is present, as far as both are known."""
    known = recorded if isinstance(recorded, dict) else {}
    return all(known.get(name) is None or value is None or known[name] == value for name, value in present.items())


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

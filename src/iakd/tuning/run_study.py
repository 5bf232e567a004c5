"""A study from its first trial, or from wherever it was left, to its products."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from iakd import files
from iakd.errors import RunFailed, UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.tuning import results
from iakd.tuning.decisions import Search, propose
from iakd.tuning.results import TrialRecord, write_schedule
from iakd.tuning.search_space import first_trials
from iakd.tuning.shared_study import SharedStudy, study_storage
from iakd.tuning.trial import TrialTrainer
from iakd.tuning.workers import ALIVE, Pool, WorkerTask, wait_for_orphans

log = logging.getLogger(__name__)


def run_study(
    experiment: Experiment,
    job: StudyJob,
    run: run_dir.Run,
    trainer: Callable[[Experiment, StudyJob, str], TrialTrainer],
) -> Path:
    """Bring the study `run` to its end; returns the path of schedule.yaml.

    `trainer(experiment, job, key)` is called in every worker process, so it has to be importable there. Raises
    RunFailed where no trial is complete in the end.
    """
    tune = experiment.params.tune
    with run.open():
        wait_for_orphans(run.live / ALIVE)
        with _shared(job, run, tune.storage) as study:
            task = WorkerTask(experiment, job, run.key, study.name, run.live / results.JOURNAL, trainer)
            _run_trials(task, study, run)
            return _publish(job, run, study, tune.trials)


@contextlib.contextmanager
def _shared(job: StudyJob, run: run_dir.Run, address: str | None) -> Iterator[SharedStudy]:
    """The study as an earlier attempt or a clone of the results left it; a new one for new settings."""
    name = results.study_name(job.path)
    journal = run.live / results.JOURNAL
    if address:
        name = f"{name}@{run.key[:12]}"  # a database keeps the studies of other settings
    elif not journal.exists() and (run.folder / results.JOURNAL).exists():
        files.write_bytes(journal, (run.folder / results.JOURNAL).read_bytes())
    with contextlib.ExitStack() as stack:
        study = SharedStudy(stack.enter_context(study_storage(address, journal, own=name)), name)
        if study.notes.get("key", run.key) != run.key:
            log.info("%s: settings, data or sources changed; the study begins anew", job.path)
            journal.rename(journal.with_suffix(".old"))
            study = SharedStudy(stack.enter_context(study_storage(address, journal, own=name)), name)
        if "key" not in study.notes:
            study.note("started", run.started)
            study.note("key", run.key)
        run.started, run.seconds = study.notes["started"], study.notes.get("wall_seconds", 0.0)
        for record in study.records():
            study.requeue(record.number)
        yield study


def _remove_trials_of_others(run: run_dir.Run) -> None:
    """Clear away what earlier settings left behind, now that there is something to put in its place."""
    for top in (run.folder, run.live):
        for folder in sorted(top.glob("trials/*")):
            try:
                mine = files.read_json(folder / run_dir.RUN, "").get("study") == run.key
            except UserError:
                mine = False
            if not mine:
                shutil.rmtree(folder)


def _run_trials(task: WorkerTask, study: SharedStudy, run: run_dir.Run) -> None:
    """Run the missing trials, generation by generation: proposals need all outcomes of those before."""
    search, total = task.search, task.experiment.params.tune.trials
    for schedule in first_trials(search.first, search.tune.space, search.recipe)[1]:
        log.info(
            "%s: tune.space excludes the schedule %s, so it is no trial",
            run.path,
            schedule.model_dump(mode="json"),
        )
    progress = StudyProgress(run, study, total, search.tune.workers)
    with Pool(task, study, search.tune.workers) as pool:
        for start in range(0, total, search.tune.generation):
            end = min(start + search.tune.generation, total)
            _propose_until(search, study, end)
            unfinished = [record.number for record in study.records()[start:end] if not record.finished]
            pool.run(unfinished, progress.show)


def _propose_until(search: Search, study: SharedStudy, end: int) -> None:
    records = study.records()
    while len(records) < end:
        study.enqueue(*propose(search, records, len(records)))
        records = study.records()


def _publish(job: StudyJob, run: run_dir.Run, study: SharedStudy, total: int) -> Path:
    records = study.records()[:total]
    winner = results.best(records)
    if winner is None or winner.value is None:
        reason = next((record.reason for record in records if record.reason), "none is complete")
        raise RunFailed(f"{run.path}: all {total} trials failed; the first one: {reason}")
    name = results.study_name(job.path)
    _remove_trials_of_others(run)
    results.write_trials(run.folder, records)
    with files.atomic_path(run.folder / results.JOURNAL) as path:
        study.copy_to(path, name)
    schedule = write_schedule(run.folder, name, winner.number, winner.value, winner.values)
    run.device = results.trial_run(run.folder, winner.number).get("device", run.device)
    run.finish(results.history(records), results.summary(records))
    return schedule


class StudyProgress:
    """A line for each trial that ends, and the history for whoever watches."""

    def __init__(self, run: run_dir.Run, study: SharedStudy, total: int, workers: int) -> None:
        self._run = run
        self._study = study
        self._total = total
        self._workers = workers
        self._since = time.monotonic()
        self._before = sum(record.finished for record in study.records()[:total])
        self._ended = 0  # since this start of the command

    def show(self, number: int) -> None:
        """Tell of trial `number`, which has just ended."""
        records = self._study.records()[: self._total]
        self._ended += 1
        finished = self._before + self._ended
        left = (time.monotonic() - self._since) / self._ended * (self._total - finished)
        winner = results.best(records)
        log.info(
            "%s: trial %d %s; best %s; %d/%d, %.0f s left",
            self._run.path,
            number,
            describe(records[number]),
            f"{winner.value:.2f} % (trial {winner.number})" if winner else "none yet",
            finished,
            self._total,
            left,
        )
        self._run.log(results.history(records))
        self._study.note("wall_seconds", self._run.wall_seconds())


def describe(record: TrialRecord) -> str:
    """A trial in some words."""
    settings = " ".join(
        f"{name}={value:.3g}" for name, value in record.values.items() if isinstance(value, float | int)
    )
    value = f"{record.value:.2f} % " if record.value is not None else ""
    why = f" ({record.reason})" if record.reason else ""
    return f"{value}{record.state}{why}: {record.values['kind']} {settings}"

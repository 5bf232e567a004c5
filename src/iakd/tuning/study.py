"""Run a study from its first trial, or from where it was interrupted, to its published results."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Tune
from iakd.errors import RunFailed, UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.experiment.provenance import provenance
from iakd.tuning import results
from iakd.tuning.decisions import Direction, Search, TrialPruner, distributions, propose
from iakd.tuning.results import TrialRecord
from iakd.tuning.storage import StoredStudy, open_study
from iakd.tuning.workers import ALIVE, Pool, TrialResult, TrialTrainer, WorkerTask, wait_for_orphans

log = logging.getLogger(__name__)


def run_study(
    experiment: Experiment, job: StudyJob, run: run_dir.Run, trainer: type[TrialTrainer], workers: int
) -> Path:
    """Run all trials of the study with `workers` processes, and whoever joins; publish its results as `run`.

    Returns the path of best.yaml.

    Every worker process creates a `trainer`, so it must be importable there. Raises RunFailed where no trial is
    complete in the end.
    """
    tune = experiment.params.tune
    search = Search(tune, job.space, job.first)
    with run.open():
        wait_for_orphans(run.live / ALIVE)
        with _stored_study(run, job, tune.storage, search.directions) as stored:
            study = Study(search, stored)
            progress = StudyProgress(run, study, tune.trials)
            for schedule in job.excluded:
                log.info("%s: tune.space excludes %s: not tried", run.path, schedule)
            with Pool(WorkerTask(experiment, job, run.key, trainer), study, workers) as pool:
                for start in range(0, tune.trials, tune.generation):
                    # a proposal needs the results of all earlier generations
                    end = min(start + tune.generation, tune.trials)
                    while unfinished := study.propose(start, end):  # again, if the database forgot what it confirmed
                        for number in pool.run(unfinished):
                            progress.show(number)
            return _publish(run, job, stored, tune)


class Study:
    """A study in progress, and the only writer of its storage: proposes, prunes and records trials."""

    def __init__(self, search: Search, stored: StoredStudy) -> None:
        self._search = search
        self._stored = stored
        self._pruners: dict[int, TrialPruner] = {}  # of the trials that workers are running

    def trials(self) -> list[TrialRecord]:
        """Return all trials in the order of their numbers."""
        return self._stored.trials()

    def propose(self, start: int, end: int) -> list[int]:
        """Propose the missing trials of the generation [start, end); return the numbers of its unfinished trials."""
        for number in range(len(self.trials()), end):
            params, origin = propose(self._search, self.trials(), number)
            self._stored.add(number, params, distributions(self._search.space, params), origin)
        return [trial.number for trial in self.trials()[start:end] if not trial.finished]

    def start(self, number: int) -> dict[str, Any]:
        """Mark a trial as running, for the first time or again after its worker died; return its parameters."""
        trials = self.trials()
        self._pruners[number] = TrialPruner(self._search, trials, number)
        self._stored.start(number)
        return trials[number].params

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Record the accuracy of a running trial at a step; return whether to stop it there."""
        self._stored.report(number, step, value)
        return self._pruners[number].should_prune(step, value)

    def finish(self, number: int, result: TrialResult) -> None:
        """Record how a trial ended."""
        state = self._pruners.pop(number).state
        self._stored.finish(number, result.state, result.value, result.reason, state, result.macs)

    def note_seconds(self, seconds: float) -> None:
        """Record the time spent on the study so far."""
        self._stored.set_attribute("wall_seconds", seconds)


@contextlib.contextmanager
def _stored_study(
    run: run_dir.Run, job: StudyJob, address: str | None, directions: list[Direction]
) -> Iterator[StoredStudy]:
    """Open the study that an earlier attempt or a clone of the results left, or a new one for new settings."""
    name = results.stored_name(run, address)
    journal = run.live / run_dir.JOURNAL
    if not address and not journal.exists() and (run.folder / run_dir.JOURNAL).exists():
        files.write_bytes(journal, (run.folder / run_dir.JOURNAL).read_bytes())
    with contextlib.ExitStack() as stack:
        study = stack.enter_context(open_study(address, journal, name, directions))
        owner = study.attributes.get("key", run.key)
        _keep_trials_of_others(run)
        if owner != run.key:
            _kept(run, owner).mkdir(parents=True, exist_ok=True)
            journal.replace(_kept(run, owner) / run_dir.JOURNAL)
        known = _take_back(run, journal)
        if owner != run.key:
            log.info(
                "%s: settings, data or sources changed: %s; the earlier one is kept, and continues with its settings",
                run.path,
                "their study continues" if known else "a new study begins",
            )
            study = stack.enter_context(open_study(address, journal, name, directions))
        if "key" not in study.attributes:
            study.set_attribute("started", run.started)
            pair = f"{run.about['teacher']}-{run.about['student']}"
            commit = provenance()["git_commit"]
            study.describe(
                job.measure, dataset=run.about["dataset"], pair=pair, method=run.about["method"], git_commit=commit
            )
            study.set_attribute("key", run.key)
        run.started = study.attributes.get("started", run.started)
        run.seconds = study.attributes.get("wall_seconds", 0.0)
        yield study


def _kept(run: run_dir.Run, key: str) -> Path:
    """Return where the study with this key is while another one is in the results; MLflow does not see it there."""
    return run.live / ".studies" / key[:12]


def _keep_trials_of_others(run: run_dir.Run) -> None:
    """Copy the published trials of other settings to their study's folder, before others take their place."""
    for folder in sorted(run.folder.glob("trials/*")):
        with contextlib.suppress(UserError):
            key = files.read_object(folder / run_dir.RUN, "").get("study")
            if isinstance(key, str) and key != run.key:
                _copy(folder, _kept(run, key) / "trials" / folder.name)


def _take_back(run: run_dir.Run, journal: Path) -> bool:
    """Put this study's trials and journal back if another one had taken their place; return whether it had."""
    kept = _kept(run, run.key)
    if not kept.exists():
        return False
    for folder in sorted(kept.glob("trials/*")):
        _copy(folder, run.folder / "trials" / folder.name)
    if (kept / run_dir.JOURNAL).exists():
        (kept / run_dir.JOURNAL).replace(journal)
    shutil.rmtree(kept)
    return True


def _copy(folder: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)


def _publish(run: run_dir.Run, job: StudyJob, stored: StoredStudy, tune: Tune) -> Path:
    trials = stored.trials()[: tune.trials]
    best = results.best(trials)
    if best is None or best.value is None:
        reason = next((trial.reason for trial in trials if trial.reason), "none is complete")
        raise RunFailed(f"{run.path}: all {tune.trials} trials failed; the first one: {reason}")
    name = results.study_name(run.path)
    _remove_other_trials(run)
    results.write_trials(run.folder, trials, [parameter.name for parameter in job.space.parameters])
    with files.atomic_path(run.folder / run_dir.JOURNAL) as path:
        stored.copy_to(path, name)
    seeds = f"mean of {tune.seeds} seeds" if tune.seeds > 1 else "1 seed"
    about = f"Best trial of the study {name}: trial {best.number}, {best.value:.2f} % on validation, {seeds}."
    path = results.write_best(run.folder, job.label, job.space.entry(best.params), about)
    run.device = results.trial_run(run.folder, best.number).get("device", run.device)
    written = (run_dir.BEST, run_dir.TRIALS, run_dir.JOURNAL)
    run.finish(results.history(trials), results.summary(trials), written=written)
    return path


def _remove_other_trials(run: run_dir.Run) -> None:
    """Delete the trials of a study with other settings, now that there are results to replace them; it has copies."""
    for top in (run.folder, run.live):
        for folder in sorted([*top.glob("trials/*"), *top.glob("trials/*/seed*")], reverse=True):
            try:
                own = files.read_object(folder / run_dir.RUN, "").get("study") == run.key
            except UserError:
                own = False
            if not own:
                shutil.rmtree(folder)


class StudyProgress:
    """Logs a line for each trial that ends, and keeps the live history up to date."""

    def __init__(self, run: run_dir.Run, study: Study, total: int) -> None:
        self._run = run
        self._study = study
        self._total = total
        self._since = time.monotonic()
        self._before = sum(trial.finished for trial in study.trials()[:total])
        self._ended = 0  # since this process started

    def show(self, number: int) -> None:
        """Report trial `number`, which has just ended."""
        trials = self._study.trials()[: self._total]
        self._ended += 1
        finished = self._before + self._ended
        left = (time.monotonic() - self._since) / self._ended * (self._total - finished)
        best = results.best(trials)
        log.info(
            "%s: trial %d %s; best %s; %d/%d, %.0f s left",
            self._run.path,
            number,
            describe(trials[number]),
            f"{best.value:.2f} % (trial {best.number})" if best else "none yet",
            finished,
            self._total,
            left,
        )
        self._run.log(results.history(trials))
        self._study.note_seconds(self._run.wall_seconds())


def describe(trial: TrialRecord) -> str:
    """Return one line about a finished trial: accuracy, state, settings."""
    settings = " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    )
    value = f"{trial.value:.2f} % " if trial.value is not None else ""
    reason = f" ({trial.reason})" if trial.reason else ""
    return f"{value}{trial.state}{reason}: {settings}"

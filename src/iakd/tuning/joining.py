"""Train trials of a study that another process runs, here or on another machine that sees the same files.

Nothing is sent between the two. Whoever joins reads the study's storage (the journal, or the database), takes a trial
that nobody has locked, decides by itself whether to prune it, as decisions depend on earlier generations only, and
publishes its files. The process that runs the study stays the only writer of the storage: it reads such a trial back
from its files, like one of an earlier attempt. So workers may come and go, or be killed, at any time.
"""

import logging
import time
from collections.abc import Iterator

from iakd import files
from iakd.errors import RunFailed, UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.tuning import results
from iakd.tuning.decisions import Search, TrialPruner
from iakd.tuning.results import TrialRecord
from iakd.tuning.storage import StudyReader
from iakd.tuning.workers import ELSEWHERE, SECONDS_BETWEEN_LOOKS, TrialTrainer, run_trial, trial_lock

SECONDS_WITHOUT_STUDY = 600.0

log = logging.getLogger(__name__)


def join_study(experiment: Experiment, job: StudyJob, run: run_dir.Run, trainer: type[TrialTrainer]) -> None:
    """Train trials of the study `run` until its results are published.

    Raises UserError if it is run with other settings or the file system has no locks, RunFailed if nobody runs it for
    ten minutes.
    """
    tune = experiment.params.tune
    run.live.mkdir(parents=True, exist_ok=True)
    if not files.can_lock(run.live / run_dir.LOCK):
        raise UserError(f"{run.live}: this file system has no locks, which joining a study needs")
    search = Search(tune, job.space, job.first)
    name = results.stored_name(run, tune.storage)
    reader = StudyReader(tune.storage, run.live / run_dir.JOURNAL, name, run.key)
    training = trainer(experiment, job, run.key)
    tried: set[int] = set()
    seen = time.monotonic()
    log.info("%s: waiting for trials", run.path)
    while not results.up_to_date(run, tune.trials):
        if _is_running(run):
            seen = time.monotonic()
        elif time.monotonic() - seen > SECONDS_WITHOUT_STUDY:
            raise RunFailed(f"{run.path}: nobody runs this study; start `iakd tune` without --join, too")
        for trials, number in _free_trials(search, job, reader.trials()):
            if number in tried:
                continue
            decide = TrialPruner(search, trials, number).should_prune
            result = run_trial(training, job, number, trials[number].params, tune.seeds, decide)
            if result.state != ELSEWHERE:
                tried.add(number)
                log.info("%s: trial %d %s", run.path, number, result.state)
                break
        else:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_running(run: run_dir.Run) -> bool:
    """Whether a process runs the study. Raises UserError if it does so with other settings."""
    if not files.held(run.live / run_dir.LOCK):
        return False
    try:
        key = files.read_object(run.live / run_dir.RUN, "", "key")["key"]
    except UserError:  # not announced yet
        return True
    if key != run.key:
        raise UserError(
            f"{run.path}: another process runs this study with other settings, data or sources; join with those"
        )
    return True


def _free_trials(search: Search, job: StudyJob, trials: list[TrialRecord]) -> Iterator[tuple[list[TrialRecord], int]]:
    """Yield the trials that nobody trains, each with all that are known, in the order of their numbers."""
    for trial in trials[: search.tune.trials]:
        earlier = trials[: search.generation_start(trial.number)]
        if trial.finished or not all(one.finished for one in earlier):
            continue
        if not files.held(trial_lock(job, trial.number)):
            yield trials, trial.number

"""Step 4 of mirroring: send MLflow whatever the files have and it does not, at the cost of what changed.

`Mirror` is called again and again by the follower; `sync` (`iakd track sync`) calls it once.
"""

import contextlib
import functools
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import RESULTS
from iakd.experiment.run_dir import EVALUATION, HISTORY, RUN
from iakd.tracking.address import NOTE, MlflowAddress, tracking_address
from iakd.tracking.content import (
    FINISHED,
    KILLED,
    REPORT_KEY,
    RUNNING,
    MetricValue,
    ModelContent,
    RunContent,
    read_content,
    read_model,
)
from iakd.tracking.database import first_line
from iakd.tracking.mlflow_client import (
    CURRENT,
    EARLIER,
    FILES,
    PARENT,
    SETTINGS,
    TREE,
    MlflowRun,
    RunStore,
)
from iakd.tracking.plan import Plan, planned, save_settings
from iakd.tracking.scan import RunFiles, RunLocation, scan, signature

if TYPE_CHECKING:
    from iakd.tracking.models import ModelStore

log = logging.getLogger(__name__)
Content = TypeVar("Content", RunContent, ModelContent)
MAX_ATTEMPTS = 3  # at one run, before it is left out until its files change
MAX_REFUSED = 3  # runs refused by MLflow, before the fault is taken to be MLflow's
TURN_LOCK = "turn"  # held during one mirroring; contains the id of the process that mirrored last
SYNC_TIMEOUT = 600.0  # seconds for another process's mirroring to end


class DatabaseReplaced(Exception):
    """The database file is not the one that was opened."""


@dataclass
class MirrorSummary:
    """What one mirroring found and did; if not `complete`, it should be repeated."""

    runs: int
    new: int
    damaged: int
    complete: bool


@dataclass(frozen=True)
class FoundRun:
    """What is remembered of a run on disk."""

    key: str
    status: str
    settings: dict[str, Any]
    study: str | None  # the key of the study that it is part of


class Mirror:
    """Mirrors runs to one MLflow experiment; connects to MLflow only when there is something to send."""

    def __init__(self, address: MlflowAddress, plan: Plan) -> None:
        self.address = address
        self.plan = plan
        self.process_id = uuid.uuid4().hex
        self.store: RunStore | None = None
        self.models: ModelStore | None = None
        self.runs: dict[str, MlflowRun] | None = None  # what MLflow has, by key; None: unknown
        self.mirrored: dict[RunLocation, RunFiles] = {}
        self.current: dict[RunLocation, FoundRun] = {}  # read from the files
        self.damaged: dict[RunLocation, str] = {}
        self.attempts: Counter[RunLocation] = Counter()
        self.refused: dict[RunLocation, str] = {}
        self.new = 0

    def update(self, found: list[RunFiles], timeout: float) -> MirrorSummary:
        """Mirror `found`, waiting at most `timeout` seconds for another process that is mirroring.

        Raises RunFailed if MLflow cannot be used, DatabaseReplaced, UserError if the experiment was deleted,
        FileNotFoundError if the results tree is gone.
        """
        with _turn(self.address.folder / TURN_LOCK, self.process_id, timeout) as interrupted:
            if self.store is None:
                self.store = RunStore(self.address)
            elif self.store.database_id != self.address.database_id:
                raise DatabaseReplaced
            if interrupted:
                self.runs = None
            try:
                complete = self._update(self.store, found)
            except (UserError, RunFailed):
                self.runs = None  # part of it may have arrived
                raise
            except Exception as error:  # MLflow, databases, HTTP and artifact stores have no common base class
                self.runs = None
                self.address.check_reachable()
                raise RunFailed(f"MLflow {self.address.display}: {first_line(error)}") from error
            if complete:
                self._write_note(found)
        keys = {run.key for run in self.current.values()}
        return MirrorSummary(len(keys), self.new, len(self.damaged), complete)

    def _update(self, store: RunStore, found: list[RunFiles]) -> bool:
        if self.runs is None:
            self.runs = store.load()
            self.models = None
            self.mirrored = {where: run for where, run in self.mirrored.items() if where in self.refused}
        present = {run.location for run in found}
        for table in (self.mirrored, self.current, self.damaged, self.refused):
            for gone in table.keys() - present:
                del table[gone]
        changed = [run for run in found if self.mirrored.get(run.location) != run]
        contents = [(run, content) for run in changed if not run.is_export and (content := self._read(run))]
        for run, content in contents:
            self.current[run.location] = FoundRun(content.key, content.status, content.settings, content.study)
        created = self.new
        for run, content in contents:
            if not self._update_run(store, self.runs, run, content):
                self.runs = None
                return False
            self.mirrored[run.location] = run
        if self.new > created and self.address.database is None and self._remove_twins(store, self.runs, contents):
            self.runs = None
            return False
        if not self._update_models(store, self.runs, found):
            self.runs = None
            return False
        self._end_abandoned(store, self.runs)
        self._mark(store, self.runs)
        return all(self.mirrored.get(run.location) == run for run in found)

    def _remove_twins(
        self, store: RunStore, runs: dict[str, MlflowRun], contents: list[tuple[RunFiles, RunContent]]
    ) -> bool:
        """Leave one run of each key, as all others do who create runs in this MLflow; return whether others' are left.

        Turns are for the processes of one checkout: another one that has the same results, pulled by DVC for example,
        may have created the same runs at the same moment.
        """
        present = {key: run.run_id for key, run in store.load().items()}
        gone = {key for key, run in runs.items() if present.get(key) != run.run_id}
        lost = [run for run, content in contents if content.key in gone]
        for run in lost:
            del self.mirrored[run.location]
        self.new -= len(lost)
        return bool(lost)

    def _update_models(self, store: RunStore, runs: dict[str, MlflowRun], found: list[RunFiles]) -> bool:
        """Send the exported models, after the runs that trained them; return False if that failed."""
        for run in found:
            if not run.is_export or self.mirrored.get(run.location) == run:
                continue
            content = self._reading(run, read_model)
            if content is None:
                continue
            if not self._attempt(run, functools.partial(self._send_model, store, runs, content, found)):
                return False
            self.mirrored[run.location] = run
        return True

    def _send_model(
        self, store: RunStore, runs: dict[str, MlflowRun], content: ModelContent, found: list[RunFiles]
    ) -> None:
        """Send one exported model, with the results of the run that trained it, and register it if that is asked."""
        from iakd.tracking.models import ModelStore

        if self.models is None:
            self.models = ModelStore(store)
        trained = [run for run in found if run.path == content.student and not run.live]
        student = read_content(trained[0]) if trained else None
        run = runs.get(student.key) if student else None
        if student is None or run is None or student.tags.get("iakd.model_sha256") != content.model_sha256:
            return  # its student is gone, or was trained again and will be exported again
        last = student.last_epoch
        final = [value for value in student.history if value.step == last and value.name.startswith("val_")]
        metrics = final + student.results.get(EVALUATION, [])
        model = self.models.log(content, run, student.params, metrics, student.data)
        name = self.plan.registered.get(content.pair)
        if name:
            self.models.register(content, model, run, name)

    def _read(self, run: RunFiles) -> RunContent | None:
        content = self._reading(run, read_content)
        if content is None:
            self.current.pop(run.location, None)
        return content

    def _reading(self, run: RunFiles, read: Callable[[RunFiles], Content]) -> Content | None:
        """Read files; return None if they are damaged, which is remembered, or are changing."""
        try:
            content = read(run)
        except UserError as error:
            log.warning("%s; skipped", error)
            self.damaged[run.location] = str(error)
        except OSError as error:  # the files are changing: try again, but not forever
            self.attempts[run.location] += 1
            if self.attempts[run.location] < MAX_ATTEMPTS:
                return None
            log.warning("%s cannot be read (%s); skipped", run.folder, error)
            self.damaged[run.location] = str(error)
        else:
            self.damaged.pop(run.location, None)
            return content
        self.mirrored[run.location] = run
        return None

    def _update_run(self, store: RunStore, runs: dict[str, MlflowRun], run: RunFiles, content: RunContent) -> bool:
        """Send one run; return False if that failed."""
        twin = self.current.get((run.path, not run.live))  # the other of the finished and live files
        same_run = twin is not None and twin.key == content.key
        if same_run and run.live and not run.locked:
            return True  # left behind by a process that was killed after it had written the results
        if run.live and content.key in runs and runs[content.key].is_of_others(store.tree):
            return True  # another checkout trains the same, or has done so

        def send() -> None:
            if content.key not in runs:
                runs[content.key] = store.create(content)
                self.new += 1
            still_running = same_run and twin is not None and twin.status == RUNNING
            self._send(store, runs, content, with_status=not still_running)

        return self._attempt(run, send)

    def _is_gone(self, where: RunLocation) -> bool:
        """Whether a run was deleted: by a user, or by another checkout that had created the same run."""
        found = self.current.get(where)
        known = self.runs.get(found.key) if found and self.runs else None
        return known is not None and self.store is not None and self.store.is_deleted(known)

    def _attempt(self, run: RunFiles, send: Callable[[], None]) -> bool:
        """Send something; return False if that failed and should be tried again."""
        where = run.location
        try:
            send()
        except Exception as error:  # see `update`
            self.address.check_reachable()
            if self._is_gone(where):
                return False
            self.attempts[where] += 1
            log.warning("%s: refused by MLflow: %s", run.path, first_line(error))
            if self.attempts[where] >= MAX_ATTEMPTS:
                self.mirrored[where] = run
                self.refused[where] = first_line(error)
                if len(self.refused) >= MAX_REFUSED:
                    raise RunFailed(f"MLflow {self.address.display}: {first_line(error)}") from error
            return False
        self.refused.pop(where, None)
        del self.attempts[where]
        return True

    def _send(self, store: RunStore, runs: dict[str, MlflowRun], content: RunContent, with_status: bool) -> None:
        run = runs[content.key]
        found = FoundRun(content.key, content.status, content.settings, content.study)
        settings = CURRENT if self._is_planned(content.path, found) else EARLIER
        tags = {**content.tags, TREE: store.tree, SETTINGS: settings}
        if content.parent:
            study = self.current.get((content.parent, True)) or self.current.get((content.parent, False))
            if study and study.key in runs:
                tags[PARENT] = runs[study.key].run_id
        changed = [name for name, digest in content.artifacts.items() if run.uploaded.get(name) != digest]
        note = {FILES: json.dumps(content.artifacts)} if changed else {}  # of what is noted, nothing is sent again
        history: list[MetricValue] = []
        if content.history and (not content.artifacts or HISTORY in changed):
            if run.last_epoch is None:
                run.last_epoch = store.last_step(run, content.history[0].name)
            history = [value for value in content.history if value.step > (run.last_epoch or 0)]
        metrics = history + [value for name in changed for value in content.results.get(name, [])]
        at_once = store.can_insert(run, metrics, content.params, tags | note)  # then after the files
        if not at_once:
            store.log(run, metrics, content.params, tags)
        store.log_data(run, content.data)
        for name in changed:
            path = RESULTS / content.path / name
            store.upload(run, path, name if path.is_dir() else None)
        status = content.status if with_status and (run.status != content.status or RUN in changed) else None
        if at_once:
            store.insert(run, metrics, content.params, tags | note, status, content.ended)
        elif status:
            store.set_status(run, status, content.ended)
        run.last_epoch = history[-1].step if history else run.last_epoch
        store.log(run, [], {}, note)  # last; nothing if it is noted already

    def _end_abandoned(self, store: RunStore, runs: dict[str, MlflowRun]) -> None:
        """End the runs of this tree that MLflow shows as running although no process is working on them."""
        running = {run.key for run in self.current.values() if run.status == RUNNING}
        finished = {run.key for run in self.current.values() if run.status == FINISHED}
        for key, run in self._own(store, runs).items():
            if run.status == RUNNING and key not in running:
                store.set_status(run, FINISHED if key in finished else KILLED, round(1000 * time.time()))

    def _mark(self, store: RunStore, runs: dict[str, MlflowRun]) -> None:
        """Mark this tree's runs and models as of the current settings, or of earlier ones.

        Only runs on disk can be current: another run has taken over the folder of one with other settings.
        """
        current = {run.key for (path, _), run in self.current.items() if self._is_planned(path, run)}
        refused = {self.current[where].key for where in self.refused if where in self.current}
        for key, run in self._own(store, runs).items():
            if key not in refused:
                store.log(run, [], {}, {SETTINGS: CURRENT if key in current else EARLIER})
        if self.models:
            weights = {runs[key].tags.get("iakd.model_sha256") for key in current if key in runs}
            self.models.mark(weights)

    def _is_planned(self, path: str, run: FoundRun) -> bool:
        study_path, _, trial = path.partition("/trials/")
        if not trial:
            return self.plan.has(path, run.settings) or run.key.startswith(REPORT_KEY)
        study = self.current.get((study_path, True)) or self.current.get((study_path, False))
        return study is not None and study.key == run.study and self.plan.has(study_path, study.settings)

    def _own(self, store: RunStore, runs: dict[str, MlflowRun]) -> dict[str, MlflowRun]:
        """Return the runs of this tree and data set."""
        return {
            key: run
            for key, run in runs.items()
            if run.tags.get(TREE) == store.tree and run.tags.get("iakd.path", "").startswith(f"{self.address.dataset}/")
        }

    def _write_note(self, found: list[RunFiles]) -> None:
        assert self.store is not None
        value = {
            "signature": signature(found, self.plan.digest),
            "identity": self.address.database_id,
            "experiment_id": self.store.experiment_id,
        }
        if value != self.address.last_note():
            files.write_json(self.address.folder / NOTE, value)


@contextlib.contextmanager
def _turn(path: Path, process_id: str, timeout: float) -> Iterator[bool]:
    """Hold the lock for mirroring; yield whether another process has mirrored since `process_id` held it last.

    Raises RunFailed after `timeout` seconds of waiting, FileNotFoundError if the folder is gone.
    """
    file = files.try_lock(path, patience=timeout)
    if file is None:
        raise RunFailed(f"{path}: another process has been mirroring for {timeout:.0f} s; try again later")
    with file:
        file.seek(0)
        interrupted = file.read() != process_id
        if interrupted:
            file.truncate(0)
            file.write(process_id)
            file.flush()
        yield interrupted


def sync(params: Params) -> str:
    """Bring MLflow up to date with all files once (`iakd track sync`); return a summary in one line.

    Running it again changes nothing, and it rebuilds a deleted database. Raises RunFailed if MLflow does not answer
    or refuses a run, UserError if the experiment was deleted.
    """
    address = tracking_address(params)
    if address is None:
        return "MLflow: nothing to do, tracking is off (tracking.enabled: false)"
    address.folder.mkdir(parents=True, exist_ok=True)
    save_settings(address, params)
    mirror = Mirror(address, planned(params))
    while not (summary := mirror.update(scan(address.dataset), SYNC_TIMEOUT)).complete:
        time.sleep(0.5)
    if mirror.refused:
        path, reason = next((path, reason) for (path, _), reason in mirror.refused.items())
        count = f"{len(mirror.refused)} of {summary.runs} runs were refused"
        raise RunFailed(f"MLflow {address.display}: {count}; {path}: {reason}")
    damaged = f", {summary.damaged} skipped because of damaged files" if summary.damaged else ""
    runs = f"{summary.runs} {'run' if summary.runs == 1 else 'runs'}, {summary.new} new{damaged}"
    return f"MLflow {address.display}, experiment {address.experiment}: {runs}"

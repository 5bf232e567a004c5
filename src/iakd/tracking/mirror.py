"""Bringing an experiment in MLflow up to what the files say, again and again, at the cost of what changed."""

import json
import logging
import time
import uuid
from collections import Counter
from dataclasses import dataclass

from iakd import files
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import RESULTS
from iakd.experiment.run_dir import HISTORY, RUN
from iakd.tracking import locks
from iakd.tracking.content import FINISHED, KILLED, RUNNING, Content, Point, read
from iakd.tracking.place import NOTE, Place
from iakd.tracking.scan import Found, signature
from iakd.tracking.store import FILES, PARENT, TREE, Known, RunStore, first_line

log = logging.getLogger(__name__)
ATTEMPTS = 3  # at one run, before it is left out until its files change
MANY = 3  # runs left out: then it is not the runs
Where = tuple[str, bool]  # path, live


class Replaced(Exception):
    """The database file is another one than the one that was opened."""


@dataclass
class Outcome:
    """What one mirroring found and did; not `complete` where it is worth another try."""

    runs: int
    new: int
    damaged: int
    complete: bool


class Mirror:
    """Mirrors to one place; opens MLflow when there is something to tell it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.who = uuid.uuid4().hex
        self.store: RunStore | None = None
        self.known: dict[str, Known] | None = None  # what MLflow has, by key; None: to be asked
        self.done: dict[Where, Found] = {}
        self.current: dict[Where, tuple[str, str]] = {}  # key and status of what was found
        self.damaged: dict[Where, str] = {}
        self.attempts: Counter[Where] = Counter()
        self.left_out: dict[Where, str] = {}
        self.new = 0

    def bring(self, found: list[Found], patience: float) -> Outcome:
        """Mirror `found`, waiting at most `patience` seconds for whoever mirrors at the moment.

        Raises RunFailed where MLflow cannot be used, Replaced where its database was, UserError where the
        experiment was deleted, FileNotFoundError where the tree is gone.
        """
        with locks.turn(self.place.folder / locks.TURN, self.who, patience) as others:
            if self.store is None:
                self.store = RunStore(self.place)
            elif self.store.identity != self.place.identity:
                raise Replaced
            if others:
                self.known = None
            try:
                complete = self._bring(self.store, found)
            except (UserError, RunFailed):
                self.known = None  # what MLflow has is not sure any more
                raise
            except Exception as error:  # MLflow, databases, HTTP and artifact stores have no common ancestor
                self.known = None
                self.place.check()
                raise RunFailed(f"MLflow {self.place.shown}: {first_line(error)}") from error
            if complete:
                self._note(found)
        keys = {key for key, _ in self.current.values()}
        return Outcome(len(keys), self.new, len(self.damaged), complete)

    def _bring(self, store: RunStore, found: list[Found]) -> bool:
        if self.known is None:
            self.known = store.load()
            self.done = {where: f for where, f in self.done.items() if where in self.left_out}
        present = {(f.path, f.live) for f in found}
        for table in (self.done, self.current, self.damaged, self.left_out):
            for gone in table.keys() - present:
                del table[gone]
        changed = [f for f in found if self.done.get((f.path, f.live)) != f]
        contents = [(f, content) for f in changed if (content := self._read(f))]
        for f, content in contents:
            self.current[f.path, f.live] = (content.key, content.status)
        for f, content in contents:
            if not self._update(store, self.known, f, content):
                self.known = None
                return False
            self.done[f.path, f.live] = f
        self._end_abandoned(store, self.known)
        return all(self.done.get((f.path, f.live)) == f for f in found)

    def _read(self, found: Found) -> Content | None:
        where = (found.path, found.live)
        try:
            content = read(found)
        except UserError as error:
            log.warning("%s; left out", error)
            self.damaged[where] = str(error)
        except OSError as error:  # it changes at this moment, and is read again; but not for ever
            self.attempts[where] += 1
            if self.attempts[where] < ATTEMPTS:
                return None
            log.warning("%s cannot be read (%s); left out", found.folder, error)
            self.damaged[where] = str(error)
        else:
            self.damaged.pop(where, None)
            return content
        self.current.pop(where, None)
        self.done[where] = found
        return None

    def _update(self, store: RunStore, known: dict[str, Known], found: Found, content: Content) -> bool:
        """Tell MLflow about one run; False where that failed."""
        where = (found.path, found.live)
        twin = self.current.get((found.path, not found.live))  # the same run, finished and live
        same = twin is not None and twin[0] == content.key
        if same and found.live and not found.held:
            return True  # left behind by a process that was killed after all was written
        try:
            if content.key not in known:
                known[content.key] = store.create(content)
                self.new += 1
            goes_on = same and twin is not None and twin[1] == RUNNING
            self._tell(store, known, content, with_status=not goes_on)
        except Exception as error:  # see `bring`
            self.place.check()
            self.attempts[where] += 1
            log.warning("%s: MLflow refuses it: %s", content.path, first_line(error))
            if self.attempts[where] >= ATTEMPTS:
                self.done[where] = found
                self.left_out[where] = first_line(error)
                if len(self.left_out) >= MANY:
                    raise RunFailed(f"MLflow {self.place.shown}: {first_line(error)}") from error
            return False
        self.left_out.pop(where, None)
        del self.attempts[where]
        return True

    def _tell(self, store: RunStore, runs: dict[str, Known], content: Content, with_status: bool) -> None:
        known = runs[content.key]
        tags = {**content.tags, TREE: store.tree}
        if content.parent:
            study = self.current.get((content.parent, True)) or self.current.get((content.parent, False))
            if study and study[0] in runs:
                tags[PARENT] = runs[study[0]].run_id
        changed = [name for name, digest in content.artifacts.items() if known.files.get(name) != digest]
        rows: list[Point] = []
        if content.rows and (not content.artifacts or HISTORY in changed):
            if known.step is None:
                known.step = store.last_step(known, content.rows[0].name)
            rows = [point for point in content.rows if point.step > (known.step or 0)]
        results = [point for name in changed for point in content.results.get(name, [])]
        store.log(known, rows + results, content.params, tags)
        known.step = rows[-1].step if rows else known.step
        for name in changed:
            path = RESULTS / content.path / name
            store.upload(known, path, name if path.is_dir() else None)
        if with_status and (known.status != content.status or RUN in changed):
            store.set_status(known, content.status, content.ended)
        if changed:  # last: what is noted here is never sent again
            store.log(known, [], {}, {FILES: json.dumps(content.artifacts)})

    def _end_abandoned(self, store: RunStore, runs: dict[str, Known]) -> None:
        """No run of this tree may look as if it were running when no process is at it."""
        running = {key for key, status in self.current.values() if status == RUNNING}
        finished = {key for key, status in self.current.values() if status == FINISHED}
        for key, known in runs.items():
            ours = known.tags.get(TREE) == store.tree
            ours = ours and known.tags.get("iakd.path", "").startswith(f"{self.place.dataset}/")
            if ours and known.status == RUNNING and key not in running:
                store.set_status(known, FINISHED if key in finished else KILLED, round(1000 * time.time()))

    def _note(self, found: list[Found]) -> None:
        assert self.store is not None
        value = {
            "signature": signature(found),
            "identity": self.place.identity,
            "experiment_id": self.store.experiment_id,
        }
        if value != self.place.note():
            files.write_json(self.place.folder / NOTE, value)

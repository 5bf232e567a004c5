"""`iakd track follow`: the one process that shows a tree's runs in MLflow while they run."""

import contextlib
import logging
import os
import time
from typing import IO

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed, UserError
from iakd.tracking import locks
from iakd.tracking.launch import start
from iakd.tracking.mirror import Mirror, Replaced
from iakd.tracking.place import Place, place_of
from iakd.tracking.scan import Found, scan, signature

log = logging.getLogger(__name__)
POLL, MOMENT = 1.0, 0.2  # seconds
LINGER = 5.0  # seconds without any training: the next one of a series finds MLflow imported already
SHARE = 0.02  # of a core that showing takes, unless that would delay what is shown by more than LINGER
WAITS = (2.0, 5.0, 15.0, 30.0, 60.0)  # seconds between attempts at an MLflow that fails
PATIENCE = 60.0  # seconds for a `track sync` that has its turn


def follow(params: Params) -> None:
    """Mirror until nothing runs any more.

    Ends at once, before importing mlflow, where another process does this.
    """
    place = place_of(params)
    if place is None:
        return
    with contextlib.suppress(OSError):
        os.nice(10)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
    users: IO[str] | None = None
    replaced = False
    try:
        with files.exclusive(place.folder / locks.FOLLOWER, "somebody follows"):
            try:
                users = _Follower(place).run()
            except Replaced:
                replaced = True
    except UserError:
        return
    finally:
        if users:
            users.close()  # after `follower`: see `locks`
    if replaced:
        start(place, params)  # MLflow keeps a database open for the life of a process


class _Follower:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.mirror = Mirror(place)
        self.seen: list[Found] | None = None  # what was mirrored wholly
        self.failures = 0
        self.again = 0.0  # when to try again

    def run(self) -> IO[str] | None:
        """Mirror until idle; returns the lock of users, held alone, so that nobody can start unnoticed."""
        since = time.monotonic()
        while (self.place.folder / locks.FOLLOWER).exists():  # else the tree was deleted
            began = time.monotonic()
            found = scan(self.place.dataset)
            scanned = time.monotonic() - began
            try:
                busy = any(f.held for f in found) or locks.shared(self.place.folder / locks.USERS)
                if not self._bring(found, busy):
                    return None
                if busy:
                    since = began
                elif self.seen == found and (began - since > LINGER or locks.shared(self.place.folder / locks.FLUSH)):
                    users = locks.alone(self.place.folder / locks.USERS)
                    if users:
                        return users
                self._rest(max(20 * scanned, min((time.monotonic() - began) / SHARE, LINGER)))
            except FileNotFoundError:
                return None
        return None

    def _rest(self, seconds: float) -> None:
        """Sleep at least POLL, but only a moment once somebody waits for the end."""
        until = time.monotonic() + max(POLL, seconds)
        while True:
            time.sleep(MOMENT)
            if time.monotonic() > until or locks.shared(self.place.folder / locks.FLUSH):
                return

    def _bring(self, found: list[Found], busy: bool) -> bool:
        """Mirror what changed, if it is time to; False where it is no use."""
        waiting = time.monotonic() < self.again and busy and not locks.shared(self.place.folder / locks.FLUSH)
        if found == self.seen or waiting:
            return True
        if self._nothing_new(found):
            self.seen = found
            return True
        try:
            if self.mirror.bring(found, PATIENCE).complete:
                self.seen = found
            self.failures = 0
        except UserError as error:
            log.warning("%s", error)
            return False
        except RunFailed as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("%s", error)
            if not busy or self.failures > len(WAITS):
                return False
            self.again = time.monotonic() + WAITS[self.failures - 1]
        return True

    def _nothing_new(self, found: list[Found]) -> bool:
        """Whether MLflow need not even be imported."""
        if self.mirror.store is not None or any(f.held for f in found):
            return False
        return self.place.mirrored() == signature(found)

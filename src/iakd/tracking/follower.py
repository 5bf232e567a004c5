"""Step 6 of mirroring: the follower, a background process that mirrors runs into MLflow while they train.

Every command that may train calls `ensure_follower`, and goes on. So does a workflow, so that the follower stays until
the report is written; it calls `wait_for_follower` at its end.
`follow` is the process itself (`iakd track follow`): it ends when nothing has been training for some seconds.

Four locks in the address's folder coordinate this; the kernel releases them when a process dies:

- `follower`: held by the follower as long as it lives;
- `turn`: held during one mirroring (see `mirror`);
- `users`: shared by every command that may train, and every workflow, as long as it lives; the follower stays while
  anyone holds it;
- `flush`: shared by processes that wait for the follower; it then skips its pauses.

The follower ends only while it holds `users` exclusively, and releases `follower` before `users`. A command first
joins `users`, then checks `follower`. So whichever comes first, no training is left without a follower.

Snakefiles and every training import this module, so it imports the mirror only to follow, and never mlflow.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed, UserError
from iakd.processes import SHARED_TRAINING, WITH_PARENT
from iakd.tracking.address import TRACKING_STATE, MlflowAddress, tracking_address
from iakd.tracking.plan import SavedPlan, planned, save_settings
from iakd.tracking.scan import RunFiles, scan, signature

if TYPE_CHECKING:
    from iakd.tracking.mirror import Mirror

log = logging.getLogger(__name__)
FOLLOWER_LOCK, USERS_LOCK, FLUSH_LOCK = "follower", "users", "flush"
FOLLOWED = "IAKD_FOLLOWED"  # set in the environment of jobs that a follower on another machine looks after
LOG, MAX_LOG_BYTES = "follow.log", 1_000_000
POLL, FLUSH_POLL = 1.0, 0.2  # seconds between two looks at the files, and at the flush lock
LINGER = 5.0  # seconds without a training before the follower ends: the next one of a series finds it running
CPU_SHARE = 0.02  # of one core, at most, unless that would delay anything by more than MAX_PAUSE
MAX_PAUSE = 15.0  # seconds: with 5, a workflow of short trainings spent 30 of its 470 CPU seconds here
RETRY_DELAYS = (2.0, 5.0, 15.0, 30.0, 60.0)  # seconds between attempts while MLflow fails; the last one again and again
TURN_TIMEOUT = 60.0  # seconds for a `track sync` that is mirroring
NO_LOCKS = "this file system has no locks, which following needs"
NOT_UPDATED = "MLflow is not up to date ({}); run `iakd track sync` at any time to update it"

_held_locks: list[IO[str]] = []  # kept open until this process trains no more
_followers: list[subprocess.Popen[bytes]] = []  # kept: Python warns about child processes that outlive their object


def ensure_follower(params: Params) -> None:
    """Have a background process mirror runs into MLflow as long as this process lives.

    Takes a few ms and never raises.
    """
    try:
        address = tracking_address(params)
        if address is None or FOLLOWED in os.environ:
            return
        address.folder.mkdir(parents=True, exist_ok=True)
        save_settings(address, params)
        if not files.can_lock(address.folder / USERS_LOCK):
            raise RunFailed(NO_LOCKS)
        users = files.try_lock(address.folder / USERS_LOCK, shared=True, patience=1.0)
        if users:
            _held_locks.append(users)
        if users is None or not files.held(address.folder / FOLLOWER_LOCK):
            start_follower(address, params)
    except Exception as error:  # nothing about the view of a training may stop the training
        log.warning(NOT_UPDATED.format(error))


def start_follower(address: MlflowAddress, params: Params) -> subprocess.Popen[bytes]:
    """Start a follower that outlives this process; if another one is running, it ends at once."""
    settings = save_settings(address, params)
    command = [sys.executable, "-m", "iakd", "track", "follow", "--params", str(settings)]
    environment = {name: value for name, value in os.environ.items() if name not in (WITH_PARENT, *SHARED_TRAINING)}
    with _rotated(TRACKING_STATE / LOG).open("ab") as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
    _followers.append(child)
    return child


def _rotated(path: Path) -> Path:
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path


def wait_for_follower(params: Params, timeout: float = 60) -> None:
    """Wait until MLflow shows all finished runs and the follower has ended; never raises.

    Waits at most `timeout` seconds. Returns at once if nothing changed since the last mirroring; while other
    processes are training, waits only for the finished runs. This process must not train any more.
    """
    while _held_locks:
        _held_locks.pop().close()
    try:
        address = tracking_address(params)
        if address is not None:
            _wait(address, params, time.monotonic() + timeout)
    except Exception as error:  # see `ensure_follower`
        log.warning(NOT_UPDATED.format(error))


def _wait(address: MlflowAddress, params: Params, deadline: float) -> None:
    follower = address.folder / FOLLOWER_LOCK
    up_to_date = address.mirrored_signature() == signature(scan(address.dataset), planned(params).digest)
    if up_to_date and not files.held(follower):
        return
    address.check_reachable()
    address.folder.mkdir(parents=True, exist_ok=True)
    save_settings(address, params)
    plan = SavedPlan(address, params)  # another command may replace it meanwhile
    if not files.can_lock(address.folder / USERS_LOCK):
        raise RunFailed(NO_LOCKS)
    child: subprocess.Popen[bytes] | None = None
    flush = files.try_lock(address.folder / FLUSH_LOCK, shared=True, patience=1.0)
    try:
        while time.monotonic() < deadline:
            began = time.monotonic()
            up_to_date = address.mirrored_signature() == signature(scan(address.dataset), plan.get().digest)
            alive = files.held(follower) or (child is not None and child.poll() is None)
            if up_to_date and (not alive or files.in_use(address.folder / USERS_LOCK)):
                return
            if not alive:
                if child:
                    raise RunFailed(f"see {TRACKING_STATE / LOG}")
                child = start_follower(address, params)
            time.sleep(max(0.2, 5 * (time.monotonic() - began)))
    finally:
        if flush:
            flush.close()
    raise RunFailed("the update takes longer than expected")


def follow(params: Params) -> None:
    """Mirror until nothing is training any more.

    Returns at once, before importing mlflow, if another process follows the same results.
    """
    from iakd.tracking.mirror import DatabaseReplaced, Mirror

    address = tracking_address(params)
    if address is None:
        return
    with contextlib.suppress(OSError):
        os.nice(10)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
    users: IO[str] | None = None
    replaced = False
    try:
        with files.exclusive(address.folder / FOLLOWER_LOCK, "another follower is running"):
            try:
                plan = SavedPlan(address, params)
                users = Follower(address, Mirror(address, plan.get()), plan).run()
            except DatabaseReplaced:
                replaced = True
    except (UserError, FileNotFoundError):  # another follower, or the tree was deleted
        return
    finally:
        if users:
            users.close()  # after `follower`, see above
    if replaced:
        start_follower(address, params)  # MLflow keeps a database open for the life of a process


class Follower:
    """Looks at the files again and again, and mirrors what changed."""

    def __init__(self, address: MlflowAddress, mirror: "Mirror", plan: SavedPlan) -> None:
        self.address = address
        self.mirror = mirror
        self.plan = plan
        self.mirrored: list[RunFiles] | None = None  # what was mirrored completely
        self.failures = 0
        self.retry_at = 0.0

    def run(self) -> IO[str] | None:
        """Mirror until idle; return the users lock, held exclusively, so that no training starts unnoticed."""
        active_at = time.monotonic()
        while (self.address.folder / FOLLOWER_LOCK).exists():  # otherwise the tree was deleted
            began = time.monotonic()
            found = scan(self.address.dataset)
            scan_seconds = time.monotonic() - began
            try:
                busy = any(run.locked for run in found) or files.in_use(self.address.folder / USERS_LOCK)
                if not self._update(found, busy):
                    return None
                if busy:
                    active_at = began
                elif self.mirrored == found and (began - active_at > LINGER or self._flush_requested()):
                    users = files.try_lock(self.address.folder / USERS_LOCK)
                    if users:
                        return users
                self._pause(max(20 * scan_seconds, min((time.monotonic() - began) / CPU_SHARE, MAX_PAUSE)))
            except FileNotFoundError:
                return None
        return None

    def _flush_requested(self) -> bool:
        return files.in_use(self.address.folder / FLUSH_LOCK)

    def _pause(self, seconds: float) -> None:
        """Sleep for `seconds`, at least POLL, or until a process waits for the follower's end."""
        until = time.monotonic() + max(POLL, seconds)
        while True:
            time.sleep(FLUSH_POLL)
            if time.monotonic() > until or self._flush_requested():
                return

    def _update(self, found: list[RunFiles], busy: bool) -> bool:
        """Mirror what changed, unless it is too early for a retry; return False if the follower should end."""
        plan = self.plan.get()
        if plan != self.mirror.plan:
            self.mirror.plan, self.mirror.runs, self.mirrored = plan, None, None
        too_early = time.monotonic() < self.retry_at and busy and not self._flush_requested()
        if found == self.mirrored or too_early:
            return True
        if self._already_mirrored(found):
            self.mirrored = found
            return True
        try:
            if self.mirror.update(found, TURN_TIMEOUT).complete:
                self.mirrored = found
            self.failures = 0
        except UserError as error:
            log.warning("%s", error)
            return False
        except RunFailed as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("%s", error)
            if not busy:
                return False
            self.retry_at = time.monotonic() + RETRY_DELAYS[min(self.failures, len(RETRY_DELAYS)) - 1]
        return True

    def _already_mirrored(self, found: list[RunFiles]) -> bool:
        """Whether an earlier process has mirrored all of it, so that mlflow need not be imported."""
        if self.mirror.store is not None or any(run.locked for run in found):
            return False
        return self.address.mirrored_signature() == signature(found, self.mirror.plan.digest)

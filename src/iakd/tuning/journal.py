"""The journal file of a study, safe against processes that are killed at any byte."""

import fcntl
import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


class WholeLines:
    """Lock of a journal that the kernel releases when its holder dies; taking it cuts off a torn last line.

    Optuna's own locks outlive a killed holder, and a journal in which something follows a torn line cannot be
    read any more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1

    def acquire(self) -> bool:
        """Wait for the lock, then repair the file."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            _cut_torn_line(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        """Let others write."""
        os.close(self._handle)


def _cut_torn_line(handle: int) -> None:
    size = os.fstat(handle).st_size
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    whole = os.pread(handle, size, 0).rfind(b"\n") + 1
    os.ftruncate(handle, whole)
    os.fsync(handle)


def open_journal(path: Path) -> JournalStorage:
    """The storage in the journal file `path`, which is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = WholeLines(path)
    lock.acquire()
    lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))  # type: ignore[arg-type]  # base class is private

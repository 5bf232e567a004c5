"""The folder of a data set's tables of teacher outputs: who uses which, and what has to go for a new one."""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from iakd import files
from iakd.config import Augment

LOCK = "lock"
PATIENCE = 10.0  # seconds; whoever looks for room holds the lock for a moment
SHARE_OF_DISK = 0.5  # of what is free: the rest is for results

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheDir:
    """Where tables are kept, of views by `augment` of the images that `data` is the hash of.

    The folders in `folder` may take up `limit` bytes together, tables counted as if they were full.
    """

    folder: Path
    data: str
    augment: Augment
    limit: int

    def claim(self, key: str, size: int) -> IO[str] | None:
        """Make the folder `key` ready for `size` bytes, None where there is no room.

        Folders that nobody uses make way, the one that was used longest ago first. The file returned keeps this one
        from that while it is open.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = files.try_lock(self.folder / LOCK, patience=PATIENCE)
        if lock is None:
            return None
        with lock:
            mine = self.folder / key
            room = min(self.limit, _occupied(mine) + int(SHARE_OF_DISK * shutil.disk_usage(self.folder).free))
            others = sorted((f for f in self.folder.iterdir() if f.is_dir() and f != mine), key=_last_used)
            taken = sum(map(_full, others))
            while others and taken + size > self.limit:
                folder = others.pop(0)
                if not files.in_use(folder / LOCK):
                    taken -= _full(folder)
                    shutil.rmtree(folder)
            if taken + size > self.limit or size > room:
                log.info("%s: no room for %.1f GiB of the teacher's outputs", self.folder, size / 2**30)
                return None
            mine.mkdir(exist_ok=True)
            user = files.lock(mine / LOCK, shared=True)
            os.utime(mine / LOCK)
            return user


def _last_used(folder: Path) -> float:
    lock = folder / LOCK
    return lock.stat().st_mtime if lock.exists() else 0.0


def _full(folder: Path) -> int:
    """Bytes of a folder's files once their holes are filled."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _occupied(folder: Path) -> int:
    """Bytes that a folder's files take up on disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir()) if folder.is_dir() else 0

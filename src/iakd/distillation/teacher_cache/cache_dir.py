"""The folder of a data set's teacher caches: LRU eviction, and locks that keep caches in use from it."""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from iakd import files
from iakd.config import Augment

LOCK = "lock"
PATIENCE = 10.0  # seconds to wait for the folder's lock, which others hold for a moment only
MAX_DISK_SHARE = 0.5  # of the free space; the rest is for results

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheDir:
    """A folder with one subfolder (cache) per key, for the views by `augment` of the images whose hash is `data`.

    All caches together may take `limit` bytes, each counted as if it were full.
    """

    folder: Path
    data: str
    augment: Augment
    limit: int

    def claim(self, key: str, size: int) -> IO[str] | None:
        """Create or open the cache `key`, which needs `size` bytes when full; return None if space is lacking.

        Evicts the least recently used caches that no process uses, as far as needed. While the returned file is open,
        the cache is in use and is not evicted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = files.try_lock(self.folder / LOCK, patience=PATIENCE)
        if lock is None:
            return None
        with lock:
            cache = self.folder / key
            available = _bytes_on_disk(cache) + int(MAX_DISK_SHARE * shutil.disk_usage(self.folder).free)
            others = sorted((f for f in self.folder.iterdir() if f.is_dir() and f != cache), key=_last_used)
            taken = sum(map(_bytes_when_full, others))
            while others and taken + size > self.limit:
                oldest = others.pop(0)
                if not files.in_use(oldest / LOCK):
                    taken -= _bytes_when_full(oldest)
                    shutil.rmtree(oldest)
            if taken + size > self.limit or size > min(self.limit, available):
                log.info("%s: not enough space for %.1f GiB of the teacher's outputs", self.folder, size / 2**30)
                return None
            cache.mkdir(exist_ok=True)
            user = files.lock(cache / LOCK, shared=True)
            os.utime(cache / LOCK)
            return user


def _last_used(cache: Path) -> float:
    lock = cache / LOCK
    return lock.stat().st_mtime if lock.exists() else 0.0


def _bytes_when_full(cache: Path) -> int:
    """Return the size of a cache's sparse files when all their rows are written."""
    return sum(file.stat().st_size for file in cache.iterdir())


def _bytes_on_disk(cache: Path) -> int:
    """Return the disk space that a cache's sparse files occupy now."""
    return sum(file.stat().st_blocks * 512 for file in cache.iterdir()) if cache.is_dir() else 0

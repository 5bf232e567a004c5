"""Who mirrors, who is at work: locks that the kernel lets go of when a process dies.

In a place's folder stand
- `follower`: held by the one process that follows, as long as it lives;
- `turn`: held for the moment of one mirroring; its content names who had the last one;
- `users`: shared by every command that may train, as long as it lives; a follower stays while there are any;
- `flush`: shared by whoever waits for the follower to end; it then leaves out its idle seconds.

A follower ends only while it holds `users` alone, and lets go of `follower` before `users`. A command first
joins `users`, then looks at `follower`. So whichever comes first, no training is left without a follower.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from iakd import files
from iakd.errors import RunFailed

FOLLOWER, TURN, USERS, FLUSH = "follower", "turn", "users", "flush"


def share(path: Path, patience: float = 1.0) -> IO[str] | None:
    """Join the holders of `path` until the returned file is closed; None if somebody keeps it alone."""
    return _opened(path, fcntl.LOCK_SH, patience)


def alone(path: Path) -> IO[str] | None:
    """Hold `path` with nobody else until the returned file is closed; None where others have it."""
    return _opened(path, fcntl.LOCK_EX, 0.0)


def _opened(path: Path, how: int, patience: float) -> IO[str] | None:
    file = path.open("a+")
    if files.take(file, how, patience):
        return file
    file.close()
    return None


def shared(path: Path) -> bool:
    """Whether anybody holds `path`, shared or alone, for longer than the moment that this question takes."""
    for _ in range(5):
        file = alone(path)
        if file is not None:
            file.close()
            return False
        time.sleep(0.002)
    return True


@contextlib.contextmanager
def turn(path: Path, who: str, patience: float) -> Iterator[bool]:
    """Mirror while nobody else does; says whether somebody else did so since `who` had the last turn.

    Raises RunFailed after `patience` seconds of waiting, FileNotFoundError where the folder is gone.
    """
    with path.open("a+") as file:
        if not files.take(file, fcntl.LOCK_EX, patience):
            raise RunFailed(f"{path}: another process has been mirroring for {patience:.0f} s; try again later")
        file.seek(0)
        others = file.read() != who
        if others:
            file.truncate(0)
            file.write(who)
            file.flush()
        yield others

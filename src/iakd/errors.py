"""The two ways in which a command can fail, what the command line makes of them, and which of them settings cause.

In a study, what a trial's own settings cause is a failed trial, and the study goes on: `UnsuitableSettings` and
`Diverged`, and errors of arithmetic. Everything else ends it: missing or damaged files, too little memory, a bug.
"""

import errno
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SHOWN = 5  # errors, besides the first

log = logging.getLogger(__name__)


class UserError(Exception):
    """The user's mistake: one line saying what is wrong, where, and what to do. Exit code 2."""


class Busy(UserError):
    """Another process is at work on the same files."""


class UnsuitableSettings(UserError):
    """Settings, networks and images that do not go together. Nothing is broken: with other settings it would work."""


class RunFailed(Exception):
    """A run that could not finish although nothing was wrong with the request. Exit code 1."""


class Diverged(RunFailed):
    """A training whose numbers are no longer finite."""


NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|Storage size calculation overflowed", re.IGNORECASE
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: numpy's MemoryError, or torch's error, which has no class of its own on the CPU."""
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


def try_each(count: int, work: Callable[[int], T]) -> list[T]:
    """Return the results of `work` for the numbers below `count`; one that fails does not stop the others.

    Raises the first error at the end, and logs the others.
    """
    results: list[T] = []
    failed: list[UserError | RunFailed] = []
    for position in range(count):
        try:
            results.append(work(position))
        except (UserError, RunFailed) as error:
            failed.append(error)
    if not failed:
        return results
    first, *others = failed
    for reason in others[:SHOWN]:
        log.error("%s", one_line(str(reason)))
    raise type(first)(f"{first} (and {len(others)} more)" if others else str(first))


def one_line(text: str) -> str:
    """Return `text` with escapes for line breaks and whatever else cannot be printed: what a user wrote is repeated."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def reason_of(error: Exception) -> str:
    """Return what an error of foreign code says, as part of a line."""
    return " ".join(str(error).split())[:200]


REMEDIES = {  # for errors of the file system
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EROFS: "make it writable",
    errno.EACCES: "fix the permissions",
    errno.EPERM: "fix the permissions",
    errno.ENOTDIR: "move the file that is where a folder should be",
    errno.EEXIST: "move the file that is where a folder should be",
    errno.EISDIR: "move the folder that is where a file should be",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.ELOOP: "remove the symbolic link that leads to itself",
    errno.EMFILE: "raise the limit with `ulimit -n`",
    errno.ENFILE: "close other programs",
    errno.EIO: "check the disk",
    errno.EFBIG: "raise the limit with `ulimit -f`, or use a file system for larger files",
    errno.ENOENT: "let nothing else delete files here",
    errno.ESTALE: "mount the file system again",
    errno.EBUSY: "close the program that uses it",
    errno.ETXTBSY: "close the program that uses it",
}
OTHERWISE = "check the file system"


def of_file_system(error: OSError) -> str | None:
    """Return the one line for an error of the file system, with a remedy; None for others, such as those of sockets."""
    if error.errno is None or (error.filename is None and error.errno not in REMEDIES):
        return None
    remedy = REMEDIES.get(error.errno, OTHERWISE)
    return f"{error.filename or Path.cwd()}: {os.strerror(error.errno)}; {remedy}, then run again"

"""The two ways in which a command can fail, what the command line makes of them, and which of them settings cause.

In a study, what a trial's own settings cause is a failed trial, and the study goes on: `UnsuitableSettings` and
`Diverged`, and errors of arithmetic. Everything else ends it: missing or damaged files, too little memory, a bug.
"""

import re


class UserError(Exception):
    """The user's mistake: one line saying what is wrong, where, and what to do. Exit code 2."""


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


def one_line(text: str) -> str:
    """Return `text` with escapes for line breaks and whatever else cannot be printed: what a user wrote is repeated."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)

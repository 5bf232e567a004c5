"""The two ways in which a command can fail, what the command line makes of them, and which of them settings cause.

In a study, what a trial's own settings cause is a failed trial, and the study goes on: `UnsuitableSettings` and
`Diverged`, and errors of arithmetic. Everything else ends it: missing or damaged files, too little memory, a bug.
"""


class UserError(Exception):
    """The user's mistake: one line saying what is wrong, where, and what to do. Exit code 2."""


class UnsuitableSettings(UserError):
    """Settings, networks and images that do not go together. Nothing is broken: with other settings it would work."""


class RunFailed(Exception):
    """A run that could not finish although nothing was wrong with the request. Exit code 1."""


class Diverged(RunFailed):
    """A training whose numbers are no longer finite."""


def one_line(text: str) -> str:
    """Return `text` with escapes for line breaks and whatever else cannot be printed: what a user wrote is repeated."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)

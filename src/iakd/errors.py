"""The two ways in which a command can fail, and what the command line makes of them."""


class UserError(Exception):
    """The user's mistake: one line saying what is wrong, where, and what to do. Exit code 2."""


class RunFailed(Exception):
    """A run that could not finish although nothing was wrong with the request. Exit code 1."""

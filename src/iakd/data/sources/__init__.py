"""Readers of data sets, one module each.

A new one is a module with `read(settings) -> Raw`, whose docstring's first line says what the data are, an
entry in `SOURCES`, and its name in `params.Dataset.source`. Heavy imports belong inside `read`.
"""

from typing import Protocol

from iakd.data.raw import Raw
from iakd.data.sources import digits
from iakd.params import Dataset


class Source(Protocol):
    """A module of this package."""

    def read(self, settings: Dataset) -> Raw:
        """All images of the data set. Raises UserError where files are missing or unusable."""
        ...


SOURCES: dict[str, Source] = {"digits": digits}


def describe(name: str) -> str:
    """What the data of a source are: the first line of its docstring."""
    return (SOURCES[name].__doc__ or name).strip().splitlines()[0]

"""Readers of data sets, a module for each family. `config.dataset.SOURCES` lists them.

A reader takes the settings and returns `SourceData`. It imports heavy packages when it is called.
"""

from collections.abc import Callable
from typing import cast

from iakd.config import SOURCES, Dataset
from iakd.data.source_data import SourceData
from iakd.plugins import import_object


def reader_of(source: str) -> Callable[[Dataset], SourceData]:
    """Return the function that reads this kind of data set."""
    return cast(Callable[[Dataset], SourceData], import_object(SOURCES[source].reader))


def read(settings: Dataset) -> SourceData:
    """Read all images of the data set, or those of `dataset.classes`.

    Raises UserError if files are missing or unusable, or if there are no such classes.
    """
    source = reader_of(settings.source)(settings)
    return source if settings.classes is None else source.with_classes(settings.classes)

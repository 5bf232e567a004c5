"""Readers of data sets, one module each.

A new one is a module with `read(settings) -> Raw`, whose docstring's first line says what the data are, an
entry in `SOURCES`, and its name in `params.Dataset.source` and `DATASET_OPTIONS`. Heavy imports belong inside `read`.
"""

from typing import Protocol

from iakd.data.raw import Raw
from iakd.data.sources import (
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    image_folder,
    imagenet,
    parquet,
    stl10,
    svhn,
    tiny_imagenet,
)
from iakd.params import Dataset


class Source(Protocol):
    """A module of this package."""

    def read(self, settings: Dataset) -> Raw:
        """All images of the data set. Raises UserError where files are missing or unusable."""
        ...


SOURCES: dict[str, Source] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "svhn": svhn,
    "stl10": stl10,
    "tiny_imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "image_folder": image_folder,
    "parquet": parquet,
}


def describe(name: str) -> str:
    """What the data of a source are: the first line of its docstring."""
    return (SOURCES[name].__doc__ or name).strip().splitlines()[0]

"""Where the files of a data set are: at the user's `path`, or downloaded from the publisher."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iakd.data.download import fetch
from iakd.errors import UserError
from iakd.files import digest
from iakd.params import Dataset

CACHE = Path(".cache/datasets")


@dataclass(frozen=True)
class Published:
    """A publisher's folder on the web, and its files with their MD5."""

    address: str
    files: Mapping[str, str]


def local(settings: Dataset) -> Path:
    """`dataset.path`. Raises UserError where it does not exist."""
    path = Path(settings.path or "").expanduser()
    if not path.exists():
        raise UserError(f"dataset.path: {path} does not exist (looked for below {Path.cwd()})")
    return path


def fingerprint(settings: Dataset) -> str | None:
    """One hash for the names and sizes of all files at `dataset.path`; None where there is no such path.

    Not of their contents, which would take as long as reading the data, nor of times, which copying changes.
    """
    root = Path(settings.path).expanduser() if settings.path is not None else None
    if root is None or not root.exists():
        return None
    if root.is_file():
        return digest([["", root.stat().st_size]])
    below = (Path(place) / name for place, _, names in os.walk(root) for name in names)
    return digest(sorted([str(path.relative_to(root)), path.lstat().st_size] for path in below))


def locate(settings: Dataset, published: Published) -> Path:
    """The folder or archive to read: the user's, or .cache/datasets/<source>/, filled if need be."""
    if settings.path is not None:
        return local(settings)
    folder = CACHE / settings.source
    for name, md5 in published.files.items():
        addresses = [*([settings.mirror] if settings.mirror else []), published.address]
        fetch([f"{address.rstrip('/')}/{name}" for address in addresses], md5, folder)
    return folder

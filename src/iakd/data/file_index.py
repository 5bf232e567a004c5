"""The index of images that stay in their files: path, size and hash of each file."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16

Index = NDArray[np.void]  # (N,), of `index_dtype`


class FileEntry(NamedTuple):
    """A file: its path below dataset.path, its size in bytes and the hash of its content."""

    path: str
    size: int
    hash: bytes


def index_dtype(longest: int) -> np.dtype[Any]:
    """Return the dtype of an index whose longest path has `longest` bytes: no objects, so it can be mapped."""
    return np.dtype([("path", f"S{longest}"), ("bytes", "<i8"), ("hash", "u1", (HASH_BYTES,))])


def make_index(entries: list[FileEntry]) -> Index:
    """Return an index of the entries."""
    paths = [os.fsencode(entry.path) for entry in entries]
    index = np.zeros(len(entries), index_dtype(max(map(len, paths), default=1)))
    index["path"] = paths
    index["bytes"] = [entry.size for entry in entries]
    index["hash"] = np.frombuffer(b"".join(entry.hash for entry in entries), np.uint8).reshape(-1, HASH_BYTES)
    return index


def entry_at(index: Index, position: int) -> FileEntry:
    """Return one entry of an index."""
    row = index[position]
    return FileEntry(os.fsdecode(bytes(row["path"])), int(row["bytes"]), row["hash"].tobytes())


def content_hash(content: bytes) -> bytes:
    """Return the hash of a file's content, as it is in the index."""
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


class FileChanged(Exception):
    """A file that differs from the index. The message follows the file's name."""


def read_entry(root: Path, entry: FileEntry) -> bytes:
    """Return the content of a file below `root`. Raises FileChanged if it is unreadable or not as in the index."""
    try:
        content = (root / entry.path).read_bytes()
    except FileNotFoundError:
        raise FileChanged("is gone") from None
    except OSError as error:
        raise FileChanged(f"cannot be read ({error.strerror})") from None
    if len(content) != entry.size or content_hash(content) != entry.hash:
        raise FileChanged("has changed")
    return content

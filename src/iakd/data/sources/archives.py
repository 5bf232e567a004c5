"""The files of a data set as published: in a folder, or in a tar or zip archive. Nothing is unpacked to disk."""

import contextlib
import gzip
import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from iakd.errors import UserError

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
MAX_BYTES = 4 << 30  # of one member: no publisher's file is larger
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, RuntimeError, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Whether the name is that of a tar or zip archive."""
    return path.name.lower().endswith(SUFFIXES)


def collect(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of the files whose base name is `wanted`, by base name without '.gz', whose compression is undone.

    `path` is an archive, or a folder that has the files, or has a folder with them, or else an archive. Raises
    UserError where the archive is damaged, names a file outside itself, or has two files of one name.
    """
    if path.is_dir():
        return _collect_folder(path, wanted)
    if not is_archive(path):
        raise UserError(f"{path} is neither a folder nor an archive ({', '.join(SUFFIXES)})")
    found: dict[str, bytes] = {}
    try:
        for name, size, read in _members(path):
            base = PurePosixPath(name.replace("\\", "/"))
            if base.is_absolute() or ".." in base.parts:
                raise UserError(
                    f"{path}: has a file named {name!r}, outside the archive: not a genuine one, get it anew"
                )
            if not wanted(base.name.removesuffix(".gz")):
                continue
            if size > MAX_BYTES:
                raise UserError(f"{path}: {name} would have {size / 2**30:.0f} GiB: not a genuine archive, get it anew")
            _add(found, base.name, read(), path)
    except DAMAGED as error:
        raise _damaged(path, error) from None
    return found


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Name, size and reader of each file of an archive, in its order."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: archive.read(info)  # type: ignore[misc]
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile():
                yield member.name, member.size, lambda member=member: _read(tar, member)  # type: ignore[misc]
        while tar.fileobj and tar.fileobj.read(1 << 20):  # to the end, where the checksum of a compressed one is
            pass


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with contextlib.closing(tar.extractfile(member)) as file:  # type: ignore[type-var]
        content = file.read()  # type: ignore[union-attr]
    if len(content) != member.size:
        raise EOFError("the archive ends too early")
    return content


def _collect_folder(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    inside = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))]
    for folder in inside:
        files = sorted(file for file in folder.iterdir() if file.is_file() and wanted(file.name.removesuffix(".gz")))
        found: dict[str, bytes] = {}
        for file in files:
            if file.name.endswith(".gz") and (folder / file.name.removesuffix(".gz")) in files:
                continue
            try:
                _add(found, file.name, file.read_bytes(), file)
            except DAMAGED as error:
                raise _damaged(file, error) from None
        if found:
            return found
    for archive in sorted(file for file in path.iterdir() if file.is_file() and is_archive(file)):
        if found := collect(archive, wanted):
            return found
    return {}


def _add(found: dict[str, bytes], name: str, content: bytes, path: Path) -> None:
    key = name.removesuffix(".gz")
    if key in found:
        raise UserError(f"{path}: has two files named {key}: keep one of them")
    if name.endswith(".gz"):
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: {name} is larger than {MAX_BYTES >> 30} GiB: not a genuine file, get it anew")
    found[key] = content


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path} is damaged or truncated ({reason}): get it anew")


ALLOWED = {
    "builtins": {"bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple"},
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},  # how protocol 2 writes bytes
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct"},
    "numpy._core.multiarray": {"_reconstruct"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
}


class _Restricted(pickle.Unpickler):
    """Finds arrays and builtins only."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module.replace("__builtin__", "builtins"), ()):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data have no use for")


def loads(content: bytes) -> Any:
    """The object in a pickle of arrays and builtins; strings of Python 2 become bytes.

    Raises ValueError, with a reason, for anything else.
    """
    try:
        return _Restricted(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # for damaged pickles the unpickler raises nearly anything
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None

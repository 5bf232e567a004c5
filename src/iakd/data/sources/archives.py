"""Read the files of a data set as published, from a folder or a tar or zip archive, without unpacking it to disk."""

import gzip
import io
import pickle
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from iakd.errors import UserError

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
MAX_BYTES = 4 << 30  # of all files that are read from an archive; no published data set has more
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, RuntimeError, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Return whether the name is that of a tar or zip archive."""
    return path.name.lower().endswith(SUFFIXES)


def collect(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the contents of the files whose base name is `wanted`, by base name. '.gz' is removed and decompressed.

    `path` is an archive, a folder with the files or with a folder of them, or a folder with an archive. Raises
    UserError if the archive is damaged, names a file outside itself, has two files of one name, or more than MAX_BYTES.
    """
    if path.is_dir():
        return _collect_folder(path, wanted)
    if not is_archive(path):
        raise UserError(f"{path} is neither a folder nor an archive ({', '.join(SUFFIXES)})")
    found: dict[str, bytes] = {}
    try:
        for name, size, read in _members(path):
            member_path = PurePosixPath(name.replace("\\", "/"))
            if member_path.is_absolute() or ".." in member_path.parts:
                raise UserError(
                    f"{path}: has a file named {name!r}, outside the archive: it is not genuine, download it again"
                )
            if not wanted(member_path.name.removesuffix(".gz")):
                continue
            left = MAX_BYTES - sum(map(len, found.values()))
            if size > left:
                raise _too_large(path, name)
            _add(found, member_path.name, read(), path, left)
    except DAMAGED as error:
        raise _damaged(path, error) from None
    return found


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Yield name, size and reader of each file in an archive, in order."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: _unzip(archive, info)  # type: ignore[misc]
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() or member.islnk() or member.issym():
                yield member.name, member.size, lambda member=member: _untar(tar, member)  # type: ignore[misc]
        while tar.fileobj and tar.fileobj.read(1 << 20):  # to the end, where a compressed archive has its checksum
            pass


def _unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if stat.S_ISLNK(info.external_attr >> 16):
        raise RuntimeError(f"{info.filename} is a link")
    return archive.read(info)


def _untar(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the content of a file, or of the file in the same archive that a link stands for."""
    try:
        file = tar.extractfile(member)
    except KeyError:
        file = None
    if file is None:
        raise RuntimeError(f"{member.name} is a link to {member.linkname}, which the archive lacks")
    with file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES or (member.isfile() and len(content) != member.size):
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


def _add(found: dict[str, bytes], name: str, content: bytes, path: Path, left: int = MAX_BYTES) -> None:
    """Add a file of at most `left` bytes, decompressed."""
    key = name.removesuffix(".gz")
    if key in found:
        raise UserError(f"{path}: has two files named {key}: keep one of them")
    if name.endswith(".gz"):
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(left + 1)
    if len(content) > left:  # a link in a tar file tells no size
        raise _too_large(path, name)
    found[key] = content


def _too_large(path: Path, name: str) -> UserError:
    what = f"with {name} it would have more than {MAX_BYTES / 2**30:.0f} GiB"
    return UserError(f"{path}: {what}: it is not genuine, download it again")


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path} is damaged or truncated ({reason}): download it again")


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
    """Loads arrays and built-in types only."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module.replace("__builtin__", "builtins"), ()):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")


def loads(content: bytes) -> Any:
    """Load a pickle of arrays and built-in types; strings of Python 2 become bytes. Raises ValueError, with a reason,
    for others.
    """
    try:
        return _Restricted(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # the unpickler raises almost anything for damaged pickles
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None

"""Atomic files, whole or absent whatever interrupts their writer, and locks."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import secrets
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from iakd.errors import Busy, UserError

PATIENCE = 1.0  # seconds; `held` takes a lock for microseconds, which must not look like another holder
READABLE = 0o644  # less what the user's umask takes away
RECORD_HASH = "record_sha256"  # entry of a record: the hash of its other entries
UNHASHED = "unhashed"  # entry of a record: the names of those that the hash leaves out
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # by some network file systems

log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    The temporary files of earlier writers of `path` that were killed are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary, owned = _create_temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        _rename(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk may not be that of the working directory
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        owned.close()


def _create_temporary(path: Path) -> tuple[Path, IO[bytes]]:
    """Create a file beside `path`; it is locked until the returned file is closed, or this process dies."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        owned = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, READABLE), "r+b")
        with contextlib.suppress(OSError):  # without locks, nobody removes leftovers
            fcntl.flock(owned, fcntl.LOCK_EX)
        if os.fstat(owned.fileno()).st_nlink:
            return temporary, owned
        owned.close()  # removed as a leftover just before it was locked


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except OSError as error:  # of which a message should name the file that the user knows
        error.filename, error.filename2 = str(path), None
        raise


def _flush_folder(folder: Path) -> None:
    """Flush a new name in `folder` to disk, as far as the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left beside it, but not those of living ones."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError if its writer lives
            leftover.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """Return `value` as indented JSON; NaN is refused, so that every reader can parse it."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as `json_text`."""
    write_text(path, json_text(value))


def write_record(path: Path, record: dict[str, Any], unhashed: tuple[str, ...] = ()) -> None:
    """Write `record` atomically as JSON `with_hash`."""
    write_json(path, with_hash(record, unhashed))


def with_hash(record: dict[str, Any], unhashed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a JSON object with a hash of it, by which `read_json` notices what was changed later.

    The hash leaves out the entries `unhashed`, so that it is the same where only these differ.
    """
    record = {**record, UNHASHED: list(unhashed)} if unhashed else record
    return {**record, RECORD_HASH: _record_hash(json.loads(json_text(record)))}


def _record_hash(record: dict[str, Any]) -> str:
    unhashed = record.get(UNHASHED)
    left_out = [RECORD_HASH, *unhashed] if isinstance(unhashed, list) else [RECORD_HASH]
    return digest({name: value for name, value in record.items() if name not in left_out})


def printable(text: str) -> str:
    """Return `text` with escapes for what is not valid Unicode, such as a file name in an old encoding, and for control
    characters, such as the end of a line.
    """
    valid = text.encode(errors="backslashreplace").decode()
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in valid
    )


def check_writable(folder: Path) -> None:
    """Raise OSError if no file can be made in `folder`, or in the nearest folder above it that exists."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def refuse_braces(folder: Path) -> None:
    """Raise UserError for a folder, of the results or of the workflow, that Snakemake cannot use."""
    if set("{}") & set(str(folder)):
        raise UserError(f"{folder}: Snakemake takes braces in the name of a folder for wildcards: use another name")


def plural(n: int, noun: str, many: str = "") -> str:
    """Return '1 seed', '3 seeds'."""
    return f"{n} {noun if n == 1 else many or noun + 's'}"


def read_json(path: Path, hint: str) -> Any:
    """Read a JSON file; `hint` says what to do where it is missing or damaged (UserError).

    A record must have its hash; those of earlier versions have none.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {hint}") from None
    if isinstance(value, dict) and RECORD_HASH in value and value[RECORD_HASH] != _record_hash(value):
        raise UserError(f"{path} is damaged (its entries do not fit their SHA-256): {hint}")
    return value


def read_if_whole(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if it is missing or, after a warning, if it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_object(path, "made again")
    except UserError as error:
        log.warning("%s", error)
        return {}


def read_object(path: Path, hint: str, *names: str) -> dict[str, Any]:
    """Read a JSON file that holds an object with these `names`; as `read_json` otherwise."""
    value = read_json(path, hint)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (not a JSON object): {hint}")
    missing = [name for name in names if name not in value]
    if missing:
        raise UserError(f"{path} is damaged (without {', '.join(missing)}): {hint}")
    return value


def sha256_bytes(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a JSON value, independent of the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


# Locks: files that the kernel unlocks when the process that holds them dies. On a file system without locks (some
# network mounts), everything goes on without them, after a warning.

_warned: list[str] = []  # the first lock file without a lock


def can_lock(path: Path) -> bool:
    """Whether the file system of the lock file `path`, which is created, has locks."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in NOT_SUPPORTED
    return True


def _flock(file: IO[Any], operation: int) -> None:
    """Lock an open file, or warn once where its file system has no locks."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        if not _warned:
            _warned.append(file.name)
            log.warning(
                "%s: this file system has no locks (%s); going on without, so start no second command here meanwhile",
                file.name,
                error.strerror,
            )


@contextlib.contextmanager
def exclusive(path: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` alone while the block runs.

    Raises Busy(busy) if another process holds it for more than `patience` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = try_lock(path, patience=PATIENCE)
    if file is None and patience:
        log.info("%s (trying for %.0f s)", busy, patience)
        file = try_lock(path, patience=patience)
    if file is None:
        raise Busy(busy)
    with file:
        yield


def lock(path: Path, shared: bool = False) -> IO[str]:
    """Wait for the lock file `path`, to hold it alone or `shared`; closing the returned file releases it."""
    file = path.open("a+")
    try:
        _flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except BaseException:
        file.close()
        raise
    return file


def try_lock(path: Path, shared: bool = False, patience: float = 0.0) -> IO[str] | None:
    """Do as `lock` does, but return None if others hold the lock for more than `patience` seconds."""
    file = path.open("a+")
    deadline = time.monotonic() + patience
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                _flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return file
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(0.005)
    except BaseException:
        file.close()
        raise


def held(path: Path) -> bool:
    """Whether a process holds the lock file `path` alone; False where there is no such file."""
    try:
        with path.open("rb") as file:
            _flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def in_use(path: Path) -> bool:
    """Whether any process holds the lock file `path`, alone or shared, for longer than such a question takes."""
    for _ in range(5):
        file = try_lock(path)
        if file is not None:
            file.close()
            return False
        time.sleep(0.002)
    return True

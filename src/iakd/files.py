"""Atomic files, whole or absent whatever interrupts their writer, and locks."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from iakd.errors import UserError

PATIENCE = 1.0  # seconds; `held` takes a lock for microseconds, which must not look like another holder


@contextlib.contextmanager
def atomic_path(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)  # mkstemp's 0600 would hide results from the group
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left beside it; nobody may be writing it now."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN is refused, so that every reader can parse the file."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def printable(text: str) -> str:
    """Return `text` with escapes for what is not valid Unicode, such as a file name in an old encoding."""
    return text.encode(errors="backslashreplace").decode()


def read_json(path: Path, hint: str) -> Any:
    """Read a JSON file; `hint` says what to do where it is missing or damaged (UserError)."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {hint}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): {hint}") from None


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


# Locks: files that the kernel unlocks when the process that holds them dies.


@contextlib.contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path` alone while the block runs. Raises UserError(busy) if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = try_lock(path, patience=PATIENCE)
    if file is None:
        raise UserError(busy)
    with file:
        yield


def lock(path: Path, shared: bool = False) -> IO[str]:
    """Wait for the lock file `path`, to hold it alone or `shared`; closing the returned file releases it."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
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
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
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

"""Downloads that survive interruptions: resumed, retried, checked against the publisher's hash, complete or absent."""

import hashlib
import http.client
import logging
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Dataset
from iakd.data.layout import files_below
from iakd.errors import RunFailed, UserError
from iakd.files import digest, sha256_file

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row without new bytes
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
CHUNK = 1 << 18
SECONDS_BETWEEN_LINES = 5.0  # seconds between two lines of progress
PERMANENT = {400, 401, 403, 404, 405, 410, 451}  # trying again would not help


def fetch(
    urls: Sequence[str], checksum: str, folder: Path, algorithm: str = "md5", setting: str = "dataset.path"
) -> Path:
    """Return the file that all `urls` name, in `folder`, downloading it unless it is there and intact.

    `checksum` is the beginning of the file's hash; `setting` is the one in which a user can name a local file instead.
    The addresses are tried in turn, and interrupted downloads are resumed (HTTP ranges). Raises RunFailed if none of
    them gives a file with that hash, and UserError if another process is downloading it.
    """

    def intact(path: Path) -> bool:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest().startswith(checksum)

    path = folder / urls[0].rsplit("/", 1)[-1]
    with files.exclusive(
        folder / f".{path.name}.lock", f"{path}: another process is downloading it; wait until it has finished"
    ):
        if path.exists() and intact(path):
            return path
        part = folder / f".{path.name}.part"
        reasons = []
        for url in urls:
            leftover = part.exists()
            reason = _download(url, part)
            if reason is None and leftover and not intact(part):  # the leftover may be of another file
                part.unlink()
                reason = _download(url, part)
            if reason is None and intact(part):
                part.replace(path)
                return path
            if reason is None:
                part.unlink()
                reason = f"not the published file (its {algorithm.upper()} differs)"
            log.warning(f"{url}: {reason}")
            reasons.append(f"{url}: {reason}")
    raise RunFailed(
        f"{path.name} could not be downloaded ({'; '.join(reasons)}): try again to resume, or "
        f"download it yourself and set {setting}"
    )


def _download(url: str, part: Path) -> str | None:
    """Download `url` to `part`, retrying as long as that brings new bytes. Return None, or why it failed."""
    failures = 0
    restarted = False
    while True:
        before = part.stat().st_size if part.exists() else 0
        log.info(f"downloading {url}" + (f", from byte {before}" if before else ""))
        try:
            _append(url, part, before)
            return None
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server responds {error.code} {error.reason}"
            if error.code == 416 and before and not restarted:  # no such range: the leftover is of another file
                part.unlink()
                restarted = True
                continue
            if error.code in PERMANENT:
                return reason
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason = " ".join(str(cause).split()) or type(cause).__name__
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures == ATTEMPTS:
            return reason
        time.sleep(PAUSE * 2 ** (failures - 1))


def _append(url: str, part: Path, start: int) -> None:
    """Append what follows byte `start`. Raises OSError if the response ends too early."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "iakd"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        length = response.headers.get("Content-Length")
        received, logged = 0, time.monotonic()
        with part.open("ab" if start and resumes else "wb") as file:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                received += len(chunk)
                if time.monotonic() > logged + SECONDS_BETWEEN_LINES:
                    logged = time.monotonic()
                    of = f" of {int(length) / 2**20:.0f}" if length else ""
                    log.info(f"{part.name.strip('.')}: {received / 2**20:.0f}{of} MiB")
    if length is not None and received < int(length):
        raise OSError(f"the connection ended after {received} of {length} bytes")


CACHE = Path(".cache/datasets")
CONTENT_BYTES = 256 << 20  # of user's files that are compared by content: reading them takes a fraction of a second


@dataclass(frozen=True)
class Published:
    """A publisher's folder on the web, and its files with their MD5."""

    address: str
    files: Mapping[str, str]


def local(settings: Dataset) -> Path:
    """Return `dataset.path`. Raises UserError if it does not exist."""
    path = Path(settings.path or "").expanduser()
    if not path.exists():
        raise UserError(f"dataset.path: {path} does not exist (looked for below {Path.cwd()})")
    return path


def fingerprint(settings: Dataset) -> str | None:
    """Return one hash of the files at `dataset.path`, wherever links there lead, and of `dataset.list_file`; None if
    they are gone.

    Up to CONTENT_BYTES in all, it covers the names and contents; of more, which would take long to read, the names and
    sizes. It does not cover the times, which copying changes. What cannot be read has a name only, folders, too: once
    it can be, the hash is another one.
    """
    root = Path(settings.path).expanduser() if settings.path is not None else None
    try:
        if root is None or not root.exists():
            return None
    except OSError:
        return None
    unreadable: list[Path] = []
    paths = [root] if root.is_file() else [*files_below(root, unreadable=unreadable), *unreadable]
    found: list[Any] = [_size(path) for path in paths]
    if sum(size or 0 for size in found) <= CONTENT_BYTES:
        found = [None if size is None else _content(path) for path, size in zip(paths, found, strict=True)]
    listed = sorted([str(path.relative_to(root)), what] for path, what in zip(paths, found, strict=True))
    path = list_path(settings)
    return digest(listed if path is None else [listed, _content(path)])


def list_path(settings: Dataset) -> Path | None:
    """Return where `dataset.list_file` is: as named, or else below `dataset.path`; None if it is not set."""
    if settings.list_file is None:
        return None
    path = Path(settings.list_file).expanduser()
    below = Path(settings.path or "").expanduser() / path
    return below if not path.exists() and below.exists() else path


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes; None for a link to nowhere, and for what is no regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _content(path: Path) -> str | None:
    """Return the hash of a file; None if it cannot be read."""
    try:
        return sha256_file(path)
    except OSError:
        return None


def locate(settings: Dataset, published: Published) -> Path:
    """Return the folder or archive to read: the user's, or .cache/datasets/<source>/, downloaded if necessary."""
    if settings.path is not None:
        return local(settings)
    folder = CACHE / settings.source
    for name, md5 in published.files.items():
        addresses = [*([settings.mirror] if settings.mirror else []), published.address]
        fetch([f"{address.rstrip('/')}/{name}" for address in addresses], md5, folder)
    return folder

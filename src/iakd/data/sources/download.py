"""Downloads that survive cuts: resumed, retried, checked against the publisher's hash, whole or absent."""

import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iakd import files
from iakd.config import Dataset
from iakd.errors import RunFailed, UserError
from iakd.files import digest

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
CHUNK = 1 << 18
TELL = 5.0  # seconds between two lines of progress
PERMANENT = {400, 401, 403, 404, 405, 410, 451}  # trying again would not help


def fetch(
    urls: Sequence[str], checksum: str, folder: Path, algorithm: str = "md5", setting: str = "dataset.path"
) -> Path:
    """The file that all `urls` name, in `folder`, downloaded unless it is there and intact.

    `checksum` is what the file's hash begins with, and `setting` where a file of the user's own can be named. The
    addresses are tried in turn. What a cut left is continued (HTTP ranges). Raises RunFailed where none of
    them gives a file with that hash; UserError where another process is downloading it.
    """

    def intact(path: Path) -> bool:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest().startswith(checksum)

    path = folder / urls[0].rsplit("/", 1)[-1]
    with files.exclusive(
        folder / f".{path.name}.lock", f"{path}: another process is downloading it; wait for it to end"
    ):
        if path.exists() and intact(path):
            return path
        part = folder / f".{path.name}.part"
        reasons = []
        for url in urls:
            leftover = part.exists()
            reason = _attempts(url, part)
            if reason is None and leftover and not intact(part):  # what was left may be of another file
                part.unlink()
                reason = _attempts(url, part)
            if reason is None and intact(part):
                part.replace(path)
                return path
            if reason is None:
                part.unlink()
                reason = f"not the file that was published (its {algorithm.upper()} differs)"
            log.warning(f"{url}: {reason}")
            reasons.append(f"{url}: {reason}")
    raise RunFailed(
        f"{path.name} could not be downloaded ({'; '.join(reasons)}): try again, which continues where it was, or get "
        f"it otherwise and name it in {setting}"
    )


def _attempts(url: str, part: Path) -> str | None:
    """Download `url` to `part`, again and again while that brings something; None, or why it failed."""
    failed = 0
    restarted = False
    while True:
        before = part.stat().st_size if part.exists() else 0
        log.info(f"downloading {url}" + (f", from byte {before}" if before else ""))
        try:
            _continue(url, part, before)
            return None
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416 and before and not restarted:  # no such range: what is there is of another file
                part.unlink()
                restarted = True
                continue
            if error.code in PERMANENT:
                return reason
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason = " ".join(str(cause).split()) or type(cause).__name__
        after = part.stat().st_size if part.exists() else 0
        failed = 0 if after > before else failed + 1
        if failed == ATTEMPTS:
            return reason
        time.sleep(PAUSE * 2 ** (failed - 1))


def _continue(url: str, part: Path, start: int) -> None:
    """Append what follows byte `start`; raises where the answer ends too early."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "iakd"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        length = answer.headers.get("Content-Length")
        received, told = 0, time.monotonic()
        with part.open("ab" if start and goes_on else "wb") as file:
            while chunk := answer.read1(CHUNK):
                file.write(chunk)
                received += len(chunk)
                if time.monotonic() > told + TELL:
                    told = time.monotonic()
                    of = f" of {int(length) / 2**20:.0f}" if length else ""
                    log.info(f"{part.name.strip('.')}: {received / 2**20:.0f}{of} MiB")
    if length is not None and received < int(length):
        raise OSError(f"the connection ended after {received} of {length} bytes")


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

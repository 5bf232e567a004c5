"""The first reading of image files that stay in their files: each is decoded once, by worker processes, and indexed."""

import functools
import logging
import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iakd.data.decoding import BadImage, DecodedImages, check_kind, check_length, decode, from_bytes
from iakd.data.file_index import FileEntry, content_hash, make_index
from iakd.data.geometry import centre_crop
from iakd.data.perceptual_hash import WORDS, Hashes, perceptual_hashes
from iakd.data.source_data import ImageFiles
from iakd.data.statistics import moments
from iakd.errors import RunFailed
from iakd.processes import cores, serve_parent, signals_held

CHUNK = 32  # files handed to a process at a time
AHEAD = 4  # chunks handed out per process
SECONDS_BETWEEN_LINES = 30

log = logging.getLogger(__name__)


class ScannedImage(NamedTuple):
    """A good image: its index entry, the moments (C, 2) of its pixels, its perceptual hash (WORDS,), and its (height,
    width) before scaling.
    """

    entry: FileEntry
    moments: NDArray[np.int64]  # (C, 2)
    hash: Hashes
    original: tuple[int, int]


def scan(
    root: Path,
    paths: list[Path],
    channels: int,
    size: tuple[int, int],
    crop_pct: float,
    on_bad_file: str,
    where: str,
) -> DecodedImages[ImageFiles]:
    """Decode the image files `paths`, all below `root`, once each, and index them in order.

    Raises UserError for a bad image unless `on_bad_file` is skip. `where` is the name of the whole in messages.
    """
    entries: list[FileEntry] = []
    sums = np.zeros((len(paths), channels, 2), np.int64)
    kept = np.zeros(len(paths), dtype=bool)
    hashes = np.zeros((len(paths), WORDS), np.uint64)
    out = DecodedImages(ImageFiles(make_index(entries), sums[:0], hashes[:0], size), kept)
    started = logged = time.monotonic()
    names = [os.path.relpath(path, root) for path in paths]
    scan_one = functools.partial(_scan_one, str(root), channels, size, crop_pct)
    for position, result in enumerate(_in_processes(scan_one, names, where)):
        if isinstance(result, BadImage):
            out.refuse_or_list(str(paths[position]), result, on_bad_file)
        else:
            entries.append(result.entry)
            sums[position] = result.moments
            hashes[position] = result.hash
            kept[position] = True
            out.sizes[result.original] += 1
        now = time.monotonic()
        if now - logged > SECONDS_BETWEEN_LINES:
            logged, rate = now, (position + 1) / (now - started)
            log.info(f"{where}: {position + 1} of {len(paths)} images scanned, {rate:.0f} images/s")
    out.images = ImageFiles(make_index(entries), sums[kept], hashes[kept], size)
    return out


def _scan_one(root: str, channels: int, size: tuple[int, int], crop_pct: float, name: str) -> ScannedImage | BadImage:
    path = Path(root, name)
    try:
        status = path.stat()
        check_kind(status.st_mode)
        check_length(status.st_size)
        content = path.read_bytes()
        image, original = decode(from_bytes(name, content), channels, size, centre_crop(size, crop_pct))
    except OSError as error:
        return BadImage(f"cannot be read ({error.strerror})")
    except BadImage as error:
        return error
    entry = FileEntry(name, len(content), content_hash(content))
    return ScannedImage(entry, moments(image[None]), perceptual_hashes(image[None])[0], original)


def _in_processes(
    scan_one: "functools.partial[ScannedImage | BadImage]", names: list[str], where: str
) -> Iterator[ScannedImage | BadImage]:
    """Yield `scan_one` of each name, in order, computed on all cores."""
    context = multiprocessing.get_context("fork")  # quick, and safe: this process has no other threads
    processes = min(cores(), len(names) // CHUNK + 1)
    pool = ProcessPoolExecutor(processes, context, _begin, (os.getpid(),))
    pending: deque[Future[list[ScannedImage | BadImage]]] = deque()
    try:
        for start in range(0, len(names), CHUNK):
            with signals_held():  # the first call starts processes
                pending.append(pool.submit(_scan_each, scan_one, names[start : start + CHUNK]))
            if len(pending) == AHEAD * processes:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise RunFailed(f"{where}: a process that decodes images died; probably out of memory") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _scan_each(
    scan_one: "functools.partial[ScannedImage | BadImage]", names: list[str]
) -> list[ScannedImage | BadImage]:
    return [scan_one(name) for name in names]


def _begin(parent: int) -> None:
    serve_parent(parent)
    warnings.filterwarnings("ignore", module="PIL")  # sizes are checked here, and odd EXIF data do not matter

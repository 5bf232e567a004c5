"""A first look at image files that stay files: each is decoded once, by worker processes, and entered in an index."""

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
from iakd.data.source_data import ImageFiles
from iakd.data.statistics import moments
from iakd.errors import RunFailed
from iakd.processes import cores, serve_parent, signals_held

CHUNK = 32  # files that a process is given at a time
AHEAD = 4  # chunks for each process that are handed out at a time
SECONDS_BETWEEN_LINES = 30

log = logging.getLogger(__name__)


class ScannedImage(NamedTuple):
    """What is known of a good image."""

    entry: FileEntry
    moments: NDArray[np.int64]  # (C, 2)
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
    """Look at the image files `paths`, all below `root`, in order.

    Raises UserError for a bad image unless `on_bad_file` is skip; `where` names the whole in messages.
    """
    entries: list[FileEntry] = []
    sums = np.zeros((len(paths), channels, 2), np.int64)
    kept = np.zeros(len(paths), dtype=bool)
    out = DecodedImages(ImageFiles(make_index(entries), sums[:0], size), kept)
    started = shown = time.monotonic()
    names = [os.path.relpath(path, root) for path in paths]
    look = functools.partial(_look, str(root), channels, size, crop_pct)
    for position, outcome in enumerate(_in_processes(look, names, where)):
        if isinstance(outcome, BadImage):
            out.refuse_or_list(str(paths[position]), outcome, on_bad_file)
        else:
            entries.append(outcome.entry)
            sums[position] = outcome.moments
            kept[position] = True
            out.sizes[outcome.original] += 1
        now = time.monotonic()
        if now - shown > SECONDS_BETWEEN_LINES:
            shown, rate = now, (position + 1) / (now - started)
            log.info(f"{where}: {position + 1} of {len(paths)} images looked at, {rate:.0f} images/s")
    out.images = ImageFiles(make_index(entries), sums[kept], size)
    return out


def _look(root: str, channels: int, size: tuple[int, int], crop_pct: float, name: str) -> ScannedImage | BadImage:
    path = Path(root, name)
    try:
        about = path.stat()
        check_kind(about.st_mode)
        check_length(about.st_size)
        content = path.read_bytes()
        image, original = decode(from_bytes(name, content), channels, size, centre_crop(size, crop_pct))
    except OSError as error:
        return BadImage(f"cannot be read ({error.strerror})")
    except BadImage as error:
        return error
    return ScannedImage(FileEntry(name, len(content), content_hash(content)), moments(image[None]), original)


def _in_processes(
    look: "functools.partial[ScannedImage | BadImage]", names: list[str], where: str
) -> Iterator[ScannedImage | BadImage]:
    """`look` at each of the names, on all cores; results in order."""
    context = multiprocessing.get_context("fork")  # quick, and safe here: nothing else runs in this process
    processes = min(cores(), len(names) // CHUNK + 1)
    pool = ProcessPoolExecutor(processes, context, _begin, (os.getpid(),))
    waiting: deque[Future[list[ScannedImage | BadImage]]] = deque()
    try:
        for start in range(0, len(names), CHUNK):
            with signals_held():  # the first time, processes start
                waiting.append(pool.submit(_each, look, names[start : start + CHUNK]))
            if len(waiting) == AHEAD * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise RunFailed(f"{where}: a process that decodes images died; is there enough memory?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _each(look: "functools.partial[ScannedImage | BadImage]", names: list[str]) -> list[ScannedImage | BadImage]:
    return [look(name) for name in names]


def _begin(parent: int) -> None:
    serve_parent(parent)
    warnings.filterwarnings("ignore", module="PIL")  # sizes are checked by us; oddities of EXIF do not matter

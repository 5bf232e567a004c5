"""Batches of images that stay in their files: worker processes decode and crop them, the device does the rest."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from iakd.data.decoding import BadImage, decode, from_bytes
from iakd.data.file_index import FileChanged, Index, entry_at, read_entry
from iakd.data.geometry import RandomCrops, centre_crop
from iakd.data.loader import DeviceLoader, FetchRequest, ImageLoader
from iakd.data.splits import Indices
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.processes import cores, serve_parent, signals_held

CHUNK = 32  # images that a worker process decodes at a time: few, for little shared memory and an early first batch
SECONDS_TO_END = 5.0
AHEAD = 4  # chunks that each worker process has ready

_Positions = NDArray[np.int64]


class Chunk(NamedTuple):
    """Some positions of an epoch, and for each that is wanted the images at these and their crops."""

    positions: _Positions
    wanted: list[tuple[_Positions, RandomCrops | None]]


@dataclass(frozen=True)
class FileImages(Dataset[Tensor | str]):
    """Image files, and how they become arrays; what worker processes work on.

    `index` names the files below `root`; `shape` (C, H, W) is that of the arrays.
    """

    root: Path
    index: Index
    shape: tuple[int, int, int]
    crop_pct: float
    again: str  # what to do where a file has changed

    def __getitem__(self, chunk: Chunk) -> Tensor | str:
        """Images uint8 (wanted, n, C, H, W), or what is wrong: of an error DataLoader would make one of many lines."""
        images = np.empty((len(chunk.wanted), len(chunk.positions), *self.shape), np.uint8)
        channels, height, width = self.shape
        centre = centre_crop((height, width), self.crop_pct)
        for place, position in enumerate(chunk.positions.tolist()):
            for number, (indices, crops) in enumerate(chunk.wanted):
                entry = entry_at(self.index, indices[place])
                crop = crops.at(position) if crops else centre
                try:
                    item = from_bytes(entry.path, read_entry(self.root, entry))
                    images[number, place] = decode(item, channels, (height, width), crop)[0]
                except (FileChanged, BadImage) as error:
                    return f"{self.root / entry.path} {error} since `iakd prepare` looked at it: {self.again}"
        return torch.from_numpy(images)


class FileLoader(ImageLoader):
    """A set of images in files, decoded anew each time they are shown; the rest as of `ImageLoader`.

    `workers`: processes that decode; 0: none, this process does it. They start with the first batch, are kept for the
    next, and end with this object or process. Batches raise UserError where a file is missing, unreadable or changed,
    or where a worker process has died.
    """

    def __init__(
        self,
        files: FileImages,
        labels: NDArray[np.int64],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        workers: int,
    ) -> None:
        super().__init__(files.shape, labels, mean, std, device)
        self._decoder = _Decoder(files, workers, pinned=self.device.type == "cuda")

    def close(self) -> None:
        """End the worker processes, which may hold what this process has open: a lock, for one."""
        self._decoder.close()

    def _fetch(self, wanted: list[FetchRequest], parts: list[slice]) -> Iterator[list[Tensor]]:
        orders = [(some.indices.numpy(), some.crops) for some in wanted]
        places = [np.arange(len(wanted[0].indices))[part] for part in parts]
        chunks = (
            Chunk(some, [(order[some], crops) for order, crops in orders])
            for positions in places
            for some in _pieces(positions)
        )
        decoded = self._decoder.each(chunks)
        for positions in places:
            pieces = [next(decoded).to(self.device, non_blocking=True) for _ in _pieces(positions)]
            yield list(torch.cat(pieces, dim=1))


def _pieces(positions: _Positions) -> list[_Positions]:
    return [positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK)]


class _Decoder:
    """Decodes chunks in order, ahead of their use, by worker processes that stay from one pass to the next."""

    def __init__(self, files: FileImages, workers: int, pinned: bool) -> None:
        self._files, self._workers, self._pinned = files, workers, pinned
        self._todo = _Todo()
        self._passes = 0
        self._end: Callable[[], object] = lambda: None
        self._loader = self._new_loader()

    def _new_loader(self) -> "DataLoader[Any]":
        options: dict[str, Any] = {}
        if self._workers:
            # A fork is quick, also from a process of the fork server, and has torch loaded; it never touches the GPU.
            options = {"multiprocessing_context": "fork", "prefetch_factor": AHEAD, "persistent_workers": True}
        return DataLoader(
            self._files,
            batch_size=None,
            sampler=self._todo,
            num_workers=self._workers,
            pin_memory=self._pinned,
            worker_init_fn=functools.partial(_begin, os.getpid()),
            generator=torch.Generator(),  # else each pass would draw from the global one
            **options,
        )

    def close(self) -> None:
        """End the processes and the pass that they are in; the next pass starts new ones."""
        self._passes += 1
        self._end()
        self._loader = self._new_loader()

    def each(self, chunks: Iterable[Chunk]) -> Iterator[Tensor]:
        """The images of each chunk. Only the latest pass can go on: an earlier one raises RuntimeError."""
        self._passes += 1
        mine = self._passes
        self._todo.chunks = chunks
        others = set(multiprocessing.active_children())
        with signals_held(), _same_handler(), _deaths_told():
            passing = iter(self._loader)
        started = set(multiprocessing.active_children()) - others
        if started:
            self._end = weakref.finalize(self, _end, os.getpid(), started)
        while True:
            if mine != self._passes:
                raise RuntimeError("this pass over the images is over: another has begun, or the set was closed")
            with _deaths_told():
                result = next(passing, None)
            if result is None:
                return
            if isinstance(result, str):
                raise UserError(result)
            yield result


class _Todo:
    """The chunks of a pass, as what DataLoader calls a sampler."""

    def __init__(self) -> None:
        self.chunks: Iterable[Chunk] = ()

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)


@contextlib.contextmanager
def _same_handler() -> Iterator[None]:
    """While DataLoader starts its processes, keep the handler of SIGCHLD.

    DataLoader's raises an error wherever the main thread is when a worker dies; without, the next batch raises it.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


@contextlib.contextmanager
def _deaths_told() -> Iterator[None]:
    """Say in one line that a worker process has died."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that decodes images died: not enough memory, or shared memory (/dev/shm)? Set "
            "compute.workers lower; 0 does without such processes"
        ) from None


def _end(parent: int, workers: set[BaseProcess]) -> None:
    """DataLoader's own way to end its processes takes seconds for each where the garbage collector starts it."""
    if os.getpid() == parent:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(SECONDS_TO_END)


def _begin(parent: int, worker: int) -> None:
    serve_parent(parent)
    warnings.filterwarnings("ignore", module="PIL")  # `iakd prepare` looked at all images


def make_loader(
    store: PreparedData,
    split: str,
    device: torch.device | str,
    chosen: Indices | None = None,
    workers: int | None = None,
) -> ImageLoader:
    """The images of a split, or those at the positions `chosen` of it; `workers` as in the settings `compute`."""
    which = slice(None) if chosen is None else chosen
    labels = store.labels(split)[which]
    if store.storage == "array":
        return DeviceLoader(store.images(split)[which], labels, store.mean, store.std, device)
    again = f"put it back, or delete {store.folder} and run `iakd prepare`"
    files = FileImages(store.root, store.files(split)[which], store.image_shape, store.crop_pct, again)
    return FileLoader(files, labels, store.mean, store.std, device, cores() if workers is None else workers)

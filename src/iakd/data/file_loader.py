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

CHUNK = 32  # images that a worker process decodes at a time: few, to save shared memory and start early
SECONDS_TO_STOP = 5.0
AHEAD = 4  # chunks that each worker process decodes ahead

_Positions = NDArray[np.int64]


class Chunk(NamedTuple):
    """Some positions of an epoch and, for each request, the images at these positions and their random crops."""

    positions: _Positions
    wanted: list[tuple[_Positions, RandomCrops | None]]


@dataclass(frozen=True)
class FileImages(Dataset[Tensor | str]):
    """Image files and how they become arrays; what worker processes work on.

    `index` lists the files below `root`; arrays have the `shape` (C, H, W). `remedy` tells a user what to do if a file
    has changed.
    """

    root: Path
    index: Index
    shape: tuple[int, int, int]
    crop_pct: float
    remedy: str  # what to do where a file has changed

    def __getitem__(self, chunk: Chunk) -> Tensor | str:
        """Return images uint8 (requests, n, C, H, W), or a message, as DataLoader makes many lines of exceptions."""
        images = np.empty((len(chunk.wanted), len(chunk.positions), *self.shape), np.uint8)
        channels, height, width = self.shape
        centre = centre_crop((height, width), self.crop_pct)
        for place, position in enumerate(chunk.positions.tolist()):
            for number, (indices, crops) in enumerate(chunk.wanted):
                entry = entry_at(self.index, indices[place])
                crop = crops.at(position) if crops else centre
                try:
                    encoded = from_bytes(entry.path, read_entry(self.root, entry))
                    images[number, place] = decode(encoded, channels, (height, width), crop)[0]
                except (FileChanged, BadImage) as error:
                    return f"{self.root / entry.path} {error} since `iakd prepare` read it: {self.remedy}"
        return torch.from_numpy(images)


class FileLoader(ImageLoader):
    """Images in files, decoded every time they are shown; otherwise like `ImageLoader`.

    `workers` is the number of decoding processes; with 0 this process decodes. They start with the first batch, are
    kept for later ones, and stop with this object or process. Batches raise UserError if a file is missing, unreadable
    or changed, or if a worker process has died.
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
        """Stop the worker processes, which may hold open files of this process, for instance a lock."""
        self._decoder.close()

    def _fetch(self, wanted: list[FetchRequest], parts: list[slice]) -> Iterator[list[Tensor]]:
        orders = [(some.indices.numpy(), some.crops) for some in wanted]
        places = [np.arange(len(wanted[0].indices))[part] for part in parts]
        chunks = (
            Chunk(some, [(order[some], crops) for order, crops in orders])
            for positions in places
            for some in _chunk_positions(positions)
        )
        decoded = self._decoder.decode(chunks)
        for positions in places:
            pieces = [next(decoded).to(self.device, non_blocking=True) for _ in _chunk_positions(positions)]
            yield list(torch.cat(pieces, dim=1))


def _chunk_positions(positions: _Positions) -> list[_Positions]:
    return [positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK)]


class _Decoder:
    """Decodes chunks in order, ahead of their use, in worker processes that stay alive between passes."""

    def __init__(self, files: FileImages, workers: int, pinned: bool) -> None:
        self._files, self._workers, self._pinned = files, workers, pinned
        self._sampler = _ChunkSampler()
        self._passes = 0
        self._terminate: Callable[[], object] = lambda: None
        self._loader = self._new_loader()

    def _new_loader(self) -> "DataLoader[Any]":
        options: dict[str, Any] = {}
        if self._workers:
            # A fork is quick and has torch loaded, also in a process of the fork server. It never uses the GPU.
            options = {"multiprocessing_context": "fork", "prefetch_factor": AHEAD, "persistent_workers": True}
        return DataLoader(
            self._files,
            batch_size=None,
            sampler=self._sampler,
            num_workers=self._workers,
            pin_memory=self._pinned,
            worker_init_fn=functools.partial(_start_worker, os.getpid()),
            generator=torch.Generator(),  # otherwise each pass would draw from the global one
            **options,
        )

    def close(self) -> None:
        """Stop the processes and the current pass. The next pass starts new ones."""
        self._passes += 1
        self._terminate()
        self._loader = self._new_loader()

    def decode(self, chunks: Iterable[Chunk]) -> Iterator[Tensor]:
        """Yield the images of each chunk. A new pass ends the one before, which then raises RuntimeError."""
        self._passes += 1
        this_pass = self._passes
        self._sampler.chunks = chunks
        others = set(multiprocessing.active_children())
        with signals_held(), _keep_sigchld_handler(), _report_deaths():
            iterator = iter(self._loader)
        started = set(multiprocessing.active_children()) - others
        if started:
            self._terminate = weakref.finalize(self, _terminate, os.getpid(), started)
        while True:
            if this_pass != self._passes:
                raise RuntimeError(
                    "this pass over the images is over: another one has started, or the loader was closed"
                )
            with _report_deaths():
                result = next(iterator, None)
            if result is None:
                return
            if isinstance(result, str):
                raise UserError(result)
            yield result


class _ChunkSampler:
    """The chunks of a pass, in the role of DataLoader's sampler."""

    def __init__(self) -> None:
        self.chunks: Iterable[Chunk] = ()

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)


@contextlib.contextmanager
def _keep_sigchld_handler() -> Iterator[None]:
    """Keep the handler of SIGCHLD while DataLoader starts its processes.

    DataLoader's handler raises wherever the main thread is when a worker dies; without it, the next batch raises.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


@contextlib.contextmanager
def _report_deaths() -> Iterator[None]:
    """Report the death of a worker process in one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that decodes images died: not enough memory, or shared memory (/dev/shm)? Set "
            "compute.workers lower; 0 uses no such processes"
        ) from None


def _terminate(parent: int, workers: set[BaseProcess]) -> None:
    """Terminate workers. DataLoader's own way takes seconds for each if the garbage collector starts it."""
    if os.getpid() == parent:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(SECONDS_TO_STOP)


def _start_worker(parent: int, worker: int) -> None:
    serve_parent(parent)
    warnings.filterwarnings("ignore", module="PIL")  # `iakd prepare` has checked all images


def make_loader(
    store: PreparedData,
    split: str,
    device: torch.device | str,
    chosen: Indices | None = None,
    workers: int | None = None,
) -> ImageLoader:
    """Return a loader of the images of a split, or of those at the positions `chosen` in it. `workers`: see
    `compute.workers`.
    """
    which = slice(None) if chosen is None else chosen
    labels = store.labels(split)[which]
    if store.storage == "array":
        return DeviceLoader(store.images(split)[which], labels, store.mean, store.std, device)
    remedy = f"put it back, or delete {store.folder} and run `iakd prepare`"
    files = FileImages(store.root, store.files(split)[which], store.image_shape, store.crop_pct, remedy)
    return FileLoader(files, labels, store.mean, store.std, device, cores() if workers is None else workers)

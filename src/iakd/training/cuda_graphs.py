"""Steps as CUDA graphs: a step's launches are recorded once and then replayed at the price of one.

Small networks leave a GPU idle most of the time, waiting for Python. A whole step (forward, backward, optimiser, sums)
is one graph. Its course depends on nothing but its pattern, which the method tells: the blocks that are swapped. Every
pattern has a graph of its own, up to MOST of them.
"""

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

from iakd.data.loader import Batch

MOST = 600  # graphs: all patterns of nine places and some; each takes some MiB of the device

Work = Callable[[Batch], None]

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records work on a device. `CudaRecorder` is the real one."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do `work`, where it will be recorded."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does `work` again, on the same memory. Recording itself changes nothing on the device."""
        ...


class CudaRecorder:
    """Graphs of one device that share their memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do `work` on the stream of the recordings, in turn with the current one."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A graph of `work`.

        torch.cuda.graph would wait for the device and give all its spare memory back before each of hundreds.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            # Other threads (pinning memory for batches to come) may use the device meanwhile.
            graph.capture_begin(self.pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay


class StepGraphs:
    """Does `work` on batches, and from the second batch of a pattern on by its graph."""

    def __init__(self, work: Work, recorder: Recorder) -> None:
        self.work = work
        self.recorder = recorder
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[Batch, Callable[[], None]]] = {}
        self._inputs: dict[Hashable, Batch] = {}  # by the form of a batch: all graphs read the same memory

    def __call__(self, batch: Batch, pattern: Hashable | None) -> None:
        """Do the work on a batch; `pattern`: None where this step is like no other."""
        if pattern is None:
            self.work(batch)
            return
        key = (pattern, _form(batch))
        if key in self._recorded:
            inputs, replay = self._recorded[key]
            _copy(batch, inputs)
            replay()
        elif key in self._seen and len(self._recorded) < MOST:
            self._record(key, batch)
        else:  # kernels are chosen and the optimiser's state is made in a pattern's first step
            self._seen.add(key)
            self.work(batch)

    def _record(self, key: Hashable, batch: Batch) -> None:
        inputs = self._inputs.setdefault(_form(batch), batch.map_tensors(torch.empty_like))
        _copy(batch, inputs)
        self.recorder.warm_up(lambda: self.work(inputs))
        try:
            self._recorded[key] = inputs, self.recorder.record(lambda: self.work(inputs))
        except RuntimeError as error:
            log.warning("a step cannot be recorded (%s); steps like it run without graphs", str(error).split("\n")[0])
            self._seen.discard(key)
        if len(self._recorded) == MOST:
            log.info("%d graphs are recorded; other patterns of swaps run without", MOST)


def _form(batch: Batch) -> Hashable:
    return tuple((name, tuple(value.shape), value.stride()) for name, value in batch.tensors().items())


def _copy(source: Batch, target: Batch) -> None:
    into = target.tensors()
    for name, value in source.tensors().items():
        into[name].copy_(value, non_blocking=True)

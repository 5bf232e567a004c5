"""How the steps of a training are executed (`compute.engine`): eagerly, or as CUDA graphs.

A CUDA graph records the kernel launches of a step once and replays them at the cost of a single launch: small networks
leave a GPU idle most of the time, waiting for Python. One graph holds a whole step: forward, backward, optimiser, sums.
What a step computes depends only on its key (`Objective.graph_key`), the set of swapped blocks: each key has a graph.
"""

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from iakd.config import Compute
from iakd.data.loader import Batch

MAX_GRAPHS = 600  # all keys of nine block slots, and some; each takes a few MiB of GPU memory

Work = Callable[[Batch], None]

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records work on a device. `CudaRecorder` is the real one."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run `work` on the stream on which it will be recorded."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that repeats `work` on the same memory. Recording changes nothing on the device."""
        ...


class CudaRecorder:
    """Records graphs that share one memory pool, which they can because they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run `work` on the recording stream, ordered with the current stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the replay of a graph of `work`; raises RuntimeError where `work` does what a graph cannot.

        The context manager `torch.cuda.graph` would synchronise and empty the memory cache before each of hundreds.
        """
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self.device.index or 0]
        random_state = generator.clone_state()
        with torch.cuda.stream(self.stream):
            # Other threads, which pin the memory of coming batches, may use the device meanwhile.
            graph.capture_begin(self.pool, capture_error_mode="thread_local")
            try:
                try:
                    work()
                finally:
                    graph.capture_end()
            except RuntimeError:  # the generator still believes that it is recorded, and would refuse to draw
                generator.graphsafe_set_state(random_state)
                raise
        return graph.replay


class StepGraphs:
    """Runs `work` on batches: the first batch of a key eagerly, the later ones by its graph.

    If one step cannot be recorded, all are run eagerly from then on: what torch keeps for graphs (its random states,
    their memory) is then no longer to be relied on.
    """

    def __init__(self, work: Work, recorder: Recorder) -> None:
        self.work = work
        self.recorder = recorder
        self._failed = False
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[Batch, Callable[[], None]]] = {}
        self._inputs: dict[Hashable, Batch] = {}  # by batch layout: all graphs of a layout read the same memory

    def __call__(self, batch: Batch, graph_key: Hashable | None) -> None:
        """Run the work on a batch. `graph_key` is None for a step that no other step repeats."""
        if graph_key is None or self._failed:
            self.work(batch)
            return
        key = (graph_key, _layout(batch))
        if key in self._recorded:
            inputs, replay = self._recorded[key]
            _copy(batch, inputs)
            replay()
        elif key in self._seen and len(self._recorded) < MAX_GRAPHS:
            self._record(key, batch)
        else:  # the first step of a key selects kernels and allocates the optimiser's state
            self._seen.add(key)
            self.work(batch)

    def _record(self, key: Hashable, batch: Batch) -> None:
        inputs = self._inputs.setdefault(_layout(batch), batch.map_tensors(torch.empty_like))
        _copy(batch, inputs)
        self.recorder.warm_up(lambda: self.work(inputs))
        try:
            self._recorded[key] = inputs, self.recorder.record(lambda: self.work(inputs))
        except RuntimeError as error:
            log.warning("a step cannot be recorded (%s); training without graphs", str(error).split("\n")[0])
            self._failed = True
            self._recorded.clear()
        if len(self._recorded) == MAX_GRAPHS:
            log.info("%d graphs are recorded; other swap patterns run without", MAX_GRAPHS)


def _layout(batch: Batch) -> Hashable:
    return tuple((name, tuple(value.shape), value.stride()) for name, value in batch.tensors().items())


def _copy(source: Batch, target: Batch) -> None:
    into = target.tensors()
    for name, value in source.tensors().items():
        into[name].copy_(value, non_blocking=True)


class Engine:
    """Executes steps: eagerly, or through `graphs` where given."""

    def __init__(self, work: Work, graphs: StepGraphs | None, device: torch.device) -> None:
        self.work = work
        self.graphs = graphs
        self._device = device
        self._lr: dict[int, Tensor] = {}  # of each parameter group

    def lr(self, value: float, group: int) -> float | Tensor:
        """Return the learning rate of a parameter group in the form that the optimiser needs: graphs read a tensor."""
        if self.graphs is None:
            return value
        return self._lr.setdefault(group, torch.zeros((), device=self._device)).fill_(value)

    def step(self, batch: Batch, graph_key: Callable[[], Hashable | None]) -> None:
        """Execute one step."""
        if self.graphs:
            self.graphs(batch, graph_key())
        else:
            self.work(batch)


def records_steps(compute: Compute, device: torch.device, processes: int = 1) -> bool:
    """Whether the steps of a training are recorded: on a GPU, unless the settings say otherwise (docs/performance.md).

    Several processes train eagerly: they communicate within a step.
    """
    return compute.engine != "eager" and device.type == "cuda" and processes == 1


def make_engine(compute: Compute, device: torch.device, work: Work, processes: int = 1) -> Engine:
    """Return the engine that the settings ask for, or the eager one with a line in the log."""
    if records_steps(compute, device, processes):
        return Engine(work, StepGraphs(work, CudaRecorder(device)), device)
    if compute.engine == "graphs" and processes > 1:
        log.warning("compute.engine: graphs is for one process; several train without")
    elif compute.engine == "graphs":
        log.warning("compute.engine: graphs need a GPU; training without")
    return Engine(work, None, device)

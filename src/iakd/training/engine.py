"""Which way the steps of a training are computed, for the loop: `compute.engine`."""

import logging
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor, nn

from iakd.config import Compute
from iakd.data.loader import Batch
from iakd.training.cuda_graphs import CudaRecorder, StepGraphs, Work

log = logging.getLogger(__name__)


class Engine:
    """Does the work of steps: as Python runs it, or by graphs where `graphs` are given."""

    def __init__(self, work: Work, graphs: StepGraphs | None, device: torch.device) -> None:
        self.work = work
        self.graphs = graphs
        self._lr = torch.zeros((), device=device) if graphs else None

    def lr(self, value: float) -> float | Tensor:
        """The learning rate in the form that the optimiser needs: a graph reads it from the device."""
        return value if self._lr is None else self._lr.fill_(value)

    def step(self, batch: Batch, pattern: Callable[[], Hashable | None]) -> None:
        """One step."""
        if self.graphs:
            self.graphs(batch, pattern())
        else:
            self.work(batch)


def make_engine(
    compute: Compute,
    device: torch.device,
    modules: Iterable[nn.Module],
    batch_size: int,
    work: Work,
    several: bool = False,
) -> Engine:
    """The engine that the settings ask for, or the next best one with a line in the log.

    `auto` is eager: docs/performance.md has the reasons. So are `several` processes, which talk to each other within
    a step.
    """
    graphs = None
    if several and compute.engine in ("compile", "graphs"):
        log.warning("compute.engine: %s is for one process; several train without", compute.engine)
    elif compute.engine == "graphs" and device.type != "cuda":
        log.warning("compute.engine: graphs need a GPU; training without")
    elif compute.engine == "graphs":
        graphs = StepGraphs(work, CudaRecorder(device))
    elif compute.engine == "compile":
        from iakd.training.compiled import CompiledBlocks, missing  # here, because it imports the compiler: seconds

        if reason := missing(device):
            log.warning("compute.engine: compile is not possible here (%s); training without", reason)
        else:
            work = CompiledBlocks(work, modules, batch_size)
    return Engine(work, graphs, device)

"""Blocks compiled one by one with torch.compile, so that swapping stays a choice of Python's and never recompiles."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from iakd.data.loader import Batch
from iakd.models.network import Block
from iakd.processes import signalled
from iakd.training.cuda_graphs import Work
from iakd.training.toolchain import use_whole_outputs

BACKEND = "inductor"
VARIANTS = 4096  # of one block class: shapes, strides, with and without gradients; torch gives up after 8
REASON = 160  # characters of an error

log = logging.getLogger(__name__)


class CompiledBlocks:
    """`work` with every block in `modules` compiled, for batches of this size.

    Batches of any other size, and whatever is done outside of `work`, run as Python has them; so does a block that
    cannot be compiled, after a line in the log for its kind. Modules stay in place: names in a state_dict and copies of
    a module are those of a module never compiled. Blocks of one class and shape share their code.
    """

    _at_work: int | None = None  # size of the batches that work is being done on, whosoever

    def __init__(self, work: Work, modules: Iterable[nn.Module], batch_size: int) -> None:
        self.work = work
        self.batch_size = batch_size
        self._refused: set[type[nn.Module]] = set()  # kinds of blocks that the log tells of
        torch._dynamo.config.recompile_limit = VARIANTS
        torch._dynamo.config.accumulated_recompile_limit = VARIANTS
        # When a block is first called, not when its gradient is first needed: an error could not be caught there.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        torch._inductor.config.fallback_random = True  # the random numbers that Python would have drawn
        blocks = {id(block): block for module in modules for block in module.modules() if isinstance(block, Block)}
        for block in blocks.values():
            if block._compiled_call_impl is None:  # trainings may share a teacher
                self._compile(block)

    def __call__(self, batch: Batch) -> None:
        """Do the work on a batch."""
        CompiledBlocks._at_work = self.batch_size
        try:
            self.work(batch)
        finally:
            CompiledBlocks._at_work = None

    def _compile(self, block: Block) -> None:
        plain = block._call_impl
        block.compile(backend=BACKEND, fullgraph=True, dynamic=False)
        compiled: Any = block._compiled_call_impl

        def call(features: torch.Tensor) -> Any:
            if len(features) == CompiledBlocks._at_work:
                try:
                    return compiled(features)
                except (TorchDynamoException, FailOnRecompileLimitHit) as error:  # before anything was computed
                    self._refuse(block, error)
            return plain(features)

        block._compiled_call_impl = call

    def _refuse(self, block: Block, error: Exception) -> None:
        """Let a block be as it was from now on."""
        if name := signalled():  # the signal may have hit the compiler, too; going on, nothing will be wrong with it
            raise KeyboardInterrupt(name) from error
        block._compiled_call_impl = None
        if block.kind not in self._refused:
            self._refused.add(block.kind)
            message = "compute.engine: %s cannot be compiled (%s); training goes on without for such blocks"
            log.warning(message, block.kind.__name__, _reason(error))


def missing(device: torch.device) -> str:
    """Why nothing can be compiled for a device; empty where something can."""
    try:
        use_whole_outputs()
        torch.compile(_probe, backend=BACKEND, fullgraph=True, dynamic=False)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compiler stumbles over, training goes on
        return _reason(error)
    return ""


def _probe(values: torch.Tensor) -> torch.Tensor:
    return values + 1


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:REASON]

"""Blocks compiled one by one with torch.compile, so that swapping stays a choice of Python's and never recompiles."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from iakd.models.network import Block

BACKEND = "inductor"
VARIANTS = 4096  # of one block class: shapes, strides, with and without gradients; torch gives up after 8

log = logging.getLogger(__name__)


def compile_blocks(modules: Iterable[nn.Module], batch_size: int) -> None:
    """Compile every block in `modules` for batches of this size; batches of any other size run as before.

    Modules stay in place: names in a state_dict and copies of a module are those of a module never compiled. Blocks
    of one class and shape share their code. Where there is no compiler, one line in the log says so.
    """
    blocks = {id(block): block for module in modules for block in module.modules() if isinstance(block, Block)}
    reason = _missing(next((p.device for b in blocks.values() for p in b.parameters()), torch.device("cpu")))
    if reason:
        log.warning("compute.engine: compile is not possible here (%s); training without", reason)
        return
    torch._dynamo.config.recompile_limit = VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = VARIANTS
    for block in blocks.values():
        _compile(block, batch_size)


def _compile(block: Block, batch_size: int) -> None:
    plain = block._call_impl
    block.compile(backend=BACKEND, fullgraph=True, dynamic=False)
    compiled: Any = block._compiled_call_impl

    def call(features: torch.Tensor, *others: Any, **named: Any) -> Any:
        return (compiled if len(features) == batch_size else plain)(features, *others, **named)

    block._compiled_call_impl = call


def _missing(device: torch.device) -> str:
    """Why nothing can be compiled for a device; empty where something can."""
    try:
        torch.compile(_probe, backend=BACKEND, fullgraph=True, dynamic=False)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compiler stumbles over, training goes on
        return " ".join(str(error).split())[:160]
    return ""


def _probe(values: torch.Tensor) -> torch.Tensor:
    return values + 1

"""The hardware's limit: what a step would take if all that it computes ran at the rates measured on the spot.

Operations are counted as torch dispatches them, forward and backward. Each takes at least its floating-point operations
over the rate of a large matrix product or convolution, and at least its bytes, read and written once, over the
bandwidth of a copy between tensors as large as a step's. What fusing would save is not known to it: it is the limit of
unfused operations.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from contestants import synchronise

COPY = 2**20  # values of a tensor of the copy: 64 images of 16 maps of 32×32
SIDE = 2048  # of the matrices
MAPS = (16, 256, 28, 28)  # of the convolution
REPETITIONS = 7


class Count(TorchDispatchMode):
    """Floating-point operations and bytes of everything that is computed in the block: `done`, one pair for each."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        out = function(*arguments, **named)
        given = [value for value in tree_leaves((arguments, named)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        memory = {value.untyped_storage().data_ptr() for value in given}
        fresh = [value for value in made if value.untyped_storage().data_ptr() not in memory]
        changed = function._schema.is_mutable
        if fresh or changed:  # else it is another view of what is there
            count = flop_registry.get(function._overloadpacket)
            operations = count(*arguments, **named, out_val=out) if count else 0
            values = given + (fresh or made)
            self.done.append((operations, sum(value.numel() * value.element_size() for value in values)))
        return out


def seconds(step: Callable[[], object], device: torch.device, precision: str = "fp32") -> float:
    """Of one `step` at the limit of the device, with the threads that torch has now."""
    with Count() as count:
        step()
    rate, bandwidth = operations_per_s(device, precision), bytes_per_s(device)
    return sum(max(operations / rate, moved / bandwidth) for operations, moved in count.done)


def operations_per_s(device: torch.device, precision: str) -> float:
    """Floating-point operations of a large matrix product or of a large 3×3 convolution, whichever is quicker."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    images, channels, height, width = MAPS
    maps = torch.randn(MAPS, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weights = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    product = 2 * SIDE**3 / _best(lambda: a @ b, device)
    operations = 2 * images * height * width * channels**2 * 9
    return max(product, operations / _best(lambda: torch.conv2d(maps, weights, padding=1), device))


def bytes_per_s(device: torch.device) -> float:
    """Read and written by a copy."""
    source, target = (torch.zeros(COPY, device=device) for _ in range(2))
    return 2 * source.numel() * source.element_size() / _best(lambda: target.copy_(source), device, 20)


def _best(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds of one `work`: the least of some measurements of several in a row."""
    found = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        for _ in range(times):
            work()
        synchronise(device)
        found.append((time.perf_counter() - start) / times)
    return min(found)

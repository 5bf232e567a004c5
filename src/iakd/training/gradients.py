"""Gradients of a batch that several processes share: added up while the backward pass still goes on.

torch's DistributedDataParallel wants a gradient for every parameter in every step, and swapped-out blocks have none.
Here, those that there are count: all processes draw the same swaps, so the same ones appear everywhere, in one order.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

BUCKET = 25 << 18  # float32 values that are sent together: 25 MiB


class Gradients:
    """Adds up the gradients of `parameters` over all processes, from each backward pass until `finish`."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._ready: list[Tensor] = []
        self._under_way: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._add) for parameter in parameters]

    def finish(self, more: Tensor) -> Tensor:
        """Wait until gradients are sums; gives the sum of `more`, too, which travels along."""
        self._ready.append(more)
        self._send()
        for work, flat, tensors in self._under_way:
            work.wait()
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
        self._under_way.clear()
        return more

    def close(self) -> None:
        """Leave the parameters as they were before."""
        for hook in self._hooks:
            hook.remove()

    def _add(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._ready.append(parameter.grad)
        if sum(tensor.numel() for tensor in self._ready) >= BUCKET:
            self._send()

    def _send(self) -> None:
        """Begin to add up what is ready."""
        flat = torch.cat([tensor.reshape(-1) for tensor in self._ready])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._under_way.append((work, flat, self._ready))
        self._ready = []

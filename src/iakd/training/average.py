"""A moving average of a network's weights (Polyak & Juditsky 1992, with exponential weights)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """`module` is a copy of `network` whose floating-point tensors follow it: average ← decay·average + (1-decay)·now.

    It starts as the network after the first update. torch's own AveragedModel asks the device in every step whether it
    has started.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.started = False
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for ours, theirs in zip(_tensors(self.module), _tensors(network), strict=True):
            self._pairs.append((ours, theirs))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network as it is now."""
        floating = [pair for pair in self._pairs if pair[0].is_floating_point() and self.started]
        if floating:
            ours, theirs = map(list, zip(*floating, strict=True))
            torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        for average, now in self._pairs:
            if not (self.started and average.is_floating_point()):
                average.copy_(now)
        self.started = True

    def state_dict(self) -> dict[str, Any]:
        """The average, for a checkpoint."""
        return {"started": self.started, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.started = state["started"]
        self.module.load_state_dict(state["module"])


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]

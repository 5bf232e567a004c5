"""The optimisers of a recipe: fused, so that a step is a few launches whatever the number of parameters."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from iakd.config import Recipe


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe, capturable: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameters`, fused; `capturable`: its steps can be recorded as CUDA graphs."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True, capturable=capturable
        )
    sgd = torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    if recipe.momentum:
        # A swapped-out block has no gradient, so blocks take their first steps at different times, which the fused
        # update cannot do when it makes the buffers itself. Starting from zero gives the same bits.
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def set_lr(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, object]) -> None:
    """Take back what `optimizer.state_dict()` gave, in the memory layout that the parameters have now.

    The fused updates go through memory as it lies, and a checkpoint may come from another device or layout.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter).copy_(value)


class WeightAverage:
    """`module` is a copy of `network` whose floating-point tensors follow it: average ← decay·average + (1-decay)·now.

    It starts as the network after the first update. torch's own AveragedModel asks the device in every step whether it
    has started.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.started = False
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for ours, theirs in zip(_state_tensors(self.module), _state_tensors(network), strict=True):
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


def _state_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]

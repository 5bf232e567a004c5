"""Optimisers of a recipe: fused, so that a step takes a few kernel launches for any number of parameters."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from iakd.config import Recipe
from iakd.models.quantisation import Quantiser


def make_optimizer(
    parameters: list[nn.Parameter],
    recipe: Recipe,
    capturable: bool = False,
    lr_factors: Mapping[nn.Parameter, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """Return the recipe's fused optimiser; `capturable` allows recording its steps as CUDA graphs.

    The learning rate of a parameter in `lr_factors` is always that multiple of the recipe's.
    """
    members: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        members.setdefault(lr_factors.get(parameter, 1.0), []).append(parameter)
    groups = [{"params": group, "lr_factor": factor, "lr": recipe.lr * factor} for factor, group in members.items()]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True, capturable=capturable
        )
    sgd = torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    if recipe.momentum:
        # A swapped-out block has no gradient, so blocks take their first step at different times, which the fused
        # update does not support when it creates the buffers itself. Buffers of zeros give the same bits.
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def set_lr(
    optimizer: torch.optim.Optimizer,
    lr: float,
    in_form: Callable[[float, int], float | Tensor] = lambda value, group: value,
) -> None:
    """Set the recipe's learning rate, and multiples of it where the optimiser has `lr_factors`.

    `in_form` turns the rate of a parameter group into what the optimiser takes.
    """
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = in_form(lr * group["lr_factor"], number)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, object]) -> None:
    """Load `optimizer.state_dict()` in the current memory layout of the parameters.

    Fused updates ignore strides, and a checkpoint may come from another device or layout.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter).copy_(value)


class WeightAverage:
    """Moving average of `network`: `module` is a copy whose floats become decay·average + (1-decay)·current.

    It equals the network after the first update. torch's AveragedModel waits for the device in every step, to ask
    whether it has started.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.started = False
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for average, current in zip(_state_tensors(self.module), _state_tensors(network), strict=True):
            self._pairs.append((average, current))
        self._ranges = [
            (average.range, current.range)
            for average, current in zip(self.module.modules(), network.modules(), strict=True)
            if isinstance(average, Quantiser) and isinstance(current, Quantiser)
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current network."""
        floating = [pair for pair in self._pairs if pair[0].is_floating_point() and self.started]
        if floating:
            averages, currents = map(list, zip(*floating, strict=True))
            torch._foreach_lerp_(averages, currents, 1 - self.decay)
        for average, current in self._ranges:  # infinite until a layer has seen a batch, which averages to NaN
            average.copy_(torch.where(average.isfinite(), average, current))
        for average, current in self._pairs:
            if not (self.started and average.is_floating_point()):
                average.copy_(current)
        self.started = True

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"started": self.started, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.started = state["started"]
        self.module.load_state_dict(state["module"])


def _state_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]

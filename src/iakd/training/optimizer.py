"""The optimisers of a recipe: fused, so that a step is a few launches whatever the number of parameters."""

import torch
from torch import Tensor, nn

from iakd.params import Recipe


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

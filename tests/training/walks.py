"""Trainings looked at step by step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from iakd.processes import Interrupt
from iakd.training.trainer import Trainer


@dataclass
class Walk:
    """After every step: the mean loss of its epoch so far, and the network's parameters and running statistics."""

    losses: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


def walk(training: Trainer) -> Walk:
    """Train to the end."""
    seen = Walk()
    for _ in training.steps(Interrupt()):
        state = [value for value in training.objective.student.state_dict().values() if value.is_floating_point()]
        seen.losses.append(training.sums.means()["loss"])
        seen.states.append(torch.cat([value.double().flatten() for value in state]))
    return seen


def compare(one: Walk, other: Walk) -> tuple[list[float], list[float]]:
    """At each step the difference of the losses, and the length of the difference of the states, relative to `one`."""
    losses = [abs(a - b) / abs(a) for a, b in zip(one.losses, other.losses, strict=True)]
    states = [float((a - b).norm() / a.norm()) for a, b in zip(one.states, other.states, strict=True)]
    return losses, states

"""Where in a training a step is, and the learning rate there: pure functions of the step, so nothing to resume."""

import math
from dataclasses import dataclass

from iakd.errors import UserError
from iakd.params import LrSchedule, Recipe


@dataclass(frozen=True)
class Timeline:
    """The steps of a training; steps and epochs count from 0."""

    epochs: int
    steps_per_epoch: int
    peak: float  # the highest learning rate
    lr_schedule: LrSchedule
    batch_size: int  # images of every step but an epoch's last

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> "Timeline":
        """The timeline of a recipe. Raises UserError where an epoch would have no step."""
        if steps_per_epoch == 0:
            raise UserError("a training set of one image cannot be trained on; raise distill.transfer or add images")
        return cls(recipe.epochs, steps_per_epoch, recipe.lr, recipe.lr_schedule, recipe.batch_size)

    @property
    def total(self) -> int:
        """Number of optimiser steps."""
        return self.epochs * self.steps_per_epoch

    @property
    def drops(self) -> list[int]:
        """Steps at which the learning rate drops, always at the start of an epoch; none for a smooth schedule."""
        if self.lr_schedule.kind != "multistep":
            return []
        return [round(milestone * self.epochs) * self.steps_per_epoch for milestone in self.lr_schedule.milestones]

    def lr(self, step: int) -> float:
        """Learning rate of a step.

        cosine: half a cosine to 0 after the warm-up (Loshchilov & Hutter 2017, without restarts);
        onecycle: linear growth over the warm-up, then linear decay to 0 (Smith & Topin 2018).
        """
        s = self.lr_schedule
        warmup = round(s.warmup * self.total)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        rest = (step - warmup) / max(1, self.total - warmup)
        match s.kind:
            case "multistep":
                return self.peak * s.gamma ** sum(step >= drop for drop in self.drops)
            case "cosine":
                return self.peak * (1 + math.cos(math.pi * rest)) / 2
            case "onecycle":
                return self.peak * (1 - rest)
            case _:
                return self.peak

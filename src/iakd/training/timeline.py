"""Where in a training a step is, and the learning rate there: pure functions of the step, so nothing to resume."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from iakd.config import LrSchedule, Recipe
from iakd.errors import UserError


@dataclass(frozen=True)
class Timeline:
    """The steps of a training; steps and epochs count from 0."""

    epochs: int
    steps_per_epoch: int  # where it shows all images
    peak: float  # the highest learning rate
    lr_schedule: LrSchedule
    batch_size: int  # images of every step but an epoch's last
    lengths: tuple[int, ...] = ()  # steps of each epoch, where some show fewer images than others

    @classmethod
    def of(cls, recipe: Recipe, steps: int, lengths: Sequence[int] = ()) -> "Timeline":
        """The timeline of a recipe, of epochs of so many `steps` or of these `lengths`.

        Raises UserError where an epoch would have no step.
        """
        if min([steps, *lengths]) == 0:
            raise UserError("a training set of one image cannot be trained on; raise distill.transfer or add images")
        varying = tuple(lengths) if any(length != steps for length in lengths) else ()
        return cls(recipe.epochs, steps, recipe.lr, recipe.lr_schedule, recipe.batch_size, varying)

    @property
    def total(self) -> int:
        """Number of optimiser steps."""
        return self.first_step(self.epochs)

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate(self.lengths, initial=0))

    def first_step(self, epoch: int) -> int:
        """The step that an epoch begins with; of the epoch after the last one, the number of all steps."""
        return self._starts[epoch] if self.lengths else epoch * self.steps_per_epoch

    def steps_in(self, epoch: int) -> int:
        """Number of steps of an epoch."""
        return self.lengths[epoch] if self.lengths else self.steps_per_epoch

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch that a step is in, and its position there."""
        if not self.lengths:
            return divmod(step, self.steps_per_epoch)
        epoch = bisect_right(self._starts, step) - 1
        return epoch, step - self._starts[epoch]

    @property
    def drops(self) -> list[int]:
        """Steps at which the learning rate drops, always at the start of an epoch; none for a smooth schedule."""
        if self.lr_schedule.kind != "multistep":
            return []
        return [self.first_step(round(milestone * self.epochs)) for milestone in self.lr_schedule.milestones]

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

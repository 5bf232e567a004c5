"""The epoch and the learning rate of each step: pure functions of the step, so that nothing has to be resumed."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from iakd.config import LrSchedule, Recipe
from iakd.errors import UnsuitableSettings


@dataclass(frozen=True)
class Timeline:
    """The steps of a training; steps and epochs count from 0."""

    epochs: int
    steps_per_epoch: int  # of an epoch with all images
    peak: float  # the highest learning rate
    lr_schedule: LrSchedule
    batch_size: int  # images per step; the last step of an epoch may have fewer
    lengths: tuple[int, ...] = ()  # steps of each epoch, if they differ
    last_batches: tuple[int, ...] = ()  # images of each epoch's last step, or of all epochs'; default: batch_size

    @classmethod
    def of(
        cls, recipe: Recipe, steps: int, lengths: Sequence[int] = (), last_batches: Sequence[int] = ()
    ) -> "Timeline":
        """Return the timeline of a recipe whose epochs have `steps` steps each, or `lengths` if given.

        Raises UnsuitableSettings if an epoch would have no step.
        """
        if min([steps, *lengths]) == 0:
            raise UnsuitableSettings("training needs more than one image; raise distill.transfer or add images")
        varying = tuple(lengths) if any(length != steps for length in lengths) else ()
        last = tuple(last_batches)
        return cls(recipe.epochs, steps, recipe.lr, recipe.lr_schedule, recipe.batch_size, varying, last)

    @property
    def total(self) -> int:
        """Number of optimiser steps."""
        return self.first_step(self.epochs)

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate(self.lengths, initial=0))

    def first_step(self, epoch: int) -> int:
        """Return the first step of an epoch; for epoch `epochs`, the total number of steps."""
        return self._starts[epoch] if self.lengths else epoch * self.steps_per_epoch

    def steps_in(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return self.lengths[epoch] if self.lengths else self.steps_per_epoch

    def locate(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the position of the step within it."""
        if not self.lengths:
            return divmod(step, self.steps_per_epoch)
        epoch = bisect_right(self._starts, step) - 1
        return epoch, step - self._starts[epoch]

    def images_in(self, step: int) -> int:
        """Return the number of images of a step."""
        epoch, position = self.locate(step)
        if not self.last_batches or position + 1 < self.steps_in(epoch):
            return self.batch_size
        return self.last_batches[epoch % len(self.last_batches)]

    def warmup(self, step: int, epochs: int) -> float:
        """Return min(epoch/epochs, 1) at a step, its epoch counted from 1; without warm-up epochs, 1."""
        return min((self.locate(step)[0] + 1) / epochs, 1.0) if epochs else 1.0

    @property
    def drops(self) -> list[int]:
        """Steps at which the learning rate drops, each the first of an epoch; empty for a smooth LR schedule."""
        if self.lr_schedule.kind != "multistep":
            return []
        return [self.first_step(round(milestone * self.epochs)) for milestone in self.lr_schedule.milestones]

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, after a linear warm-up.

        multistep: multiplied by gamma at each drop; cosine: half a cosine to 0 (Loshchilov and Hutter 2017, without
        restarts); onecycle: linear decay to 0 (Smith and Topin 2018); constant: the peak.
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

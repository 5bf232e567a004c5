"""Which branch computes what at every step: keep variables drawn from the schedule's probabilities.

Functions of (seed, epoch) or (seed, step) alone, so any draw can be replayed, and there is nothing to resume.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iakd.config import Schedule
from iakd.interactive.schedule import keep_probabilities
from iakd.seeding import derive
from iakd.training.timeline import Timeline

WHOLE_BATCH = slice(None)
KeepMask = bool | Tensor
"""What a place computes in a step: the student's blocks (True) or the teacher's; bool (B,): the student's for these
images; float (C,): the student's weight in each channel."""


class SwapSampler:
    """Which student blocks are kept, at every step: a function of (seed, epoch), so any draw can be replayed."""

    def __init__(
        self, schedule: Schedule, timeline: Timeline, blocks: int, seed: int, at_least_one_student: bool
    ) -> None:
        self.schedule = schedule
        self.timeline = timeline
        self.blocks = blocks
        self.seed = seed
        self.at_least_one_student = at_least_one_student
        self._epoch = -1
        self._kept: list[list[bool]] = []

    def planned(self, epoch: int) -> NDArray[np.float64]:
        """p_i at each step of an epoch, (steps, blocks)."""
        steps = np.arange(self.timeline.first_step(epoch), self.timeline.first_step(epoch + 1))
        return keep_probabilities(self.schedule, steps, self.timeline.total, self.timeline.drops, self.blocks)

    def drawn(self, epoch: int) -> NDArray[np.bool_]:
        """a_i ~ Bernoulli(p_i) at each step of an epoch, (steps, blocks).

        With `at_least_one_student`, a step without any student block keeps one, drawn uniformly.
        """
        rng = np.random.Generator(np.random.PCG64(derive("swap", self.seed, epoch)))
        uniform = rng.random((self.timeline.steps_in(epoch), self.blocks + 1))
        return self._kept_of(uniform, self.planned(epoch))

    def _kept_of(self, uniform: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where numbers drawn for the blocks, (n, blocks + 1), lie below p; the last column is for rows without any."""
        kept = uniform[:, : self.blocks] < p
        if self.at_least_one_student:
            none = ~kept.any(axis=1)
            kept[none, (uniform[none, -1] * self.blocks).astype(int)] = True
        return kept

    def at(self, step: int, images: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """a_i of one step of the training, for a `part` of a batch of so many images."""
        epoch, position = self.timeline.place(step)
        if epoch != self._epoch:
            self._epoch, self._kept = epoch, self.drawn(epoch).tolist()
        return self._kept[position]


class PerRowSwapSampler(SwapSampler):
    """The same with a draw of its own for each of `rows` images or channels, instead of one for the whole batch."""

    def __init__(
        self, schedule: Schedule, timeline: Timeline, blocks: int, seed: int, at_least_one_student: bool, rows: int
    ) -> None:
        super().__init__(schedule, timeline, blocks, seed, at_least_one_student)
        self.rows = rows

    def drawn(self, epoch: int) -> NDArray[Any]:
        """Share of rows that the student keeps, (steps, blocks)."""
        steps = range(self.timeline.first_step(epoch), self.timeline.first_step(epoch + 1))
        return np.stack([self._uniform_and_kept(step)[1].mean(axis=0) for step in steps])

    def _uniform_and_kept(self, step: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The numbers drawn, (rows, blocks + 1), and what they keep, (rows, blocks)."""
        rng = np.random.Generator(np.random.PCG64(derive("swap", self.seed, "step", step)))
        uniform = rng.random((self.rows, self.blocks + 1))
        return uniform, self._kept_of(uniform, self.probabilities(step))

    def probabilities(self, step: int) -> NDArray[np.float64]:
        """p_i at one step, (blocks,)."""
        epoch, position = self.timeline.place(step)
        if epoch != self._epoch:
            self._epoch, self._planned = epoch, self.planned(epoch)
        return self._planned[position]


class SampleSwapSampler(PerRowSwapSampler):
    """Each image of the batch goes its own way through the hybrid."""

    def at(self, step: int, images: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """a_i of each image, bool (B,) per place; all alike in a part of the batch, too, where others are not.

        BatchNorm cannot normalise a single image, so where one image alone would take the student's way, the one that
        came nearest to it goes along.
        """
        uniform, kept = self._uniform_and_kept(step)
        kept = kept[:images]
        for place in np.flatnonzero(kept.sum(axis=0) == 1):
            others = np.where(kept[:, place], np.inf, uniform[:images, place])
            kept[others.argmin(), place] = True
        choices = [_choice(torch.from_numpy(column)) for column in kept.T.copy()]
        return [choice if isinstance(choice, bool) else choice[part] for choice in choices]


class ChannelSwapSampler(PerRowSwapSampler):
    """Each channel is the student's with probability p, else the teacher's or the mean of both, with equal chances.

    `channels`: how many each place has. That some channel is always the student's needs no care.
    """

    def __init__(self, schedule: Schedule, timeline: Timeline, blocks: int, seed: int, channels: Sequence[int]) -> None:
        super().__init__(schedule, timeline, blocks, seed, False, max(channels))
        self.channels = channels

    def at(self, step: int, images: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """The student's weight 1, 0 or ½ in each channel, float32 (channels,) per place."""
        uniform, kept = self._uniform_and_kept(step)
        halves = uniform[:, : self.blocks] < (1 + self.probabilities(step)) / 2
        weights = np.where(kept, 1.0, np.where(halves, 0.5, 0.0)).astype(np.float32)
        columns = zip(weights.T.copy(), self.channels, strict=True)
        return [_choice(torch.from_numpy(column[:count])) for column, count in columns]


def _choice(kept: Tensor) -> KeepMask:
    if (kept == 1).all():
        return True
    return kept if (kept != 0).any() else False

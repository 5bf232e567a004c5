"""Which branch of each block slot computes, step by step: swaps drawn from the schedule's keep probabilities.

Draws are functions of (seed, epoch) or (seed, step) only. So any of them can be repeated, and a resumed training needs
no state.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iakd.config import IakdOptions, Schedule
from iakd.interactive.schedule import keep_probabilities
from iakd.seeding import derive
from iakd.training.timeline import Timeline

WHOLE_BATCH = slice(None)
KeepMask = bool | Tensor
"""What a block slot computes in a step: the student's blocks (True) or the teacher's (False); bool (B,): the student's
for these images; float (C,): the student's weight in each channel."""


class EpochDraws:
    """Random draws for the `slots` of a hybrid network, with keep probabilities from a schedule."""

    def __init__(self, schedule: Schedule, timeline: Timeline, slots: int, seed: int) -> None:
        self.schedule = schedule
        self.timeline = timeline
        self.slots = slots
        self.seed = seed
        self._epoch = -1  # of what a subclass keeps

    def planned(self, epoch: int) -> NDArray[np.float64]:
        """p_i at each step of an epoch, (steps, slots)."""
        steps = np.arange(self.timeline.first_step(epoch), self.timeline.first_step(epoch + 1))
        return keep_probabilities(self.schedule, steps, self.timeline.total, self.timeline.drops, self.slots)

    def drawn(self, epoch: int) -> NDArray[Any]:
        """a_i at each step of an epoch, (steps, …, slots)."""
        raise NotImplementedError

    def record(self, epoch: int) -> dict[str, float]:
        """Return `p_planned_<i>` and `p_drawn_<i>`, the means of p_i and a_i over an epoch."""
        return {
            f"p_{kind}_{slot}": round(float(p), 6)
            for kind, values in (("planned", self.planned(epoch)), ("drawn", self.drawn(epoch)))
            for slot, p in enumerate(values.reshape(-1, self.slots).mean(axis=0))
        }


class SwapSampler(EpochDraws):
    """Draws a_i ~ Bernoulli(p_i) for each step and block slot: 1 keeps the student's blocks, 0 swaps in the teacher's.

    One draw holds for the whole batch.
    """

    def __init__(
        self, schedule: Schedule, timeline: Timeline, slots: int, seed: int, at_least_one_student: bool = False
    ) -> None:
        super().__init__(schedule, timeline, slots, seed)
        self.at_least_one_student = at_least_one_student
        self._kept: list[list[bool]] = []

    def drawn(self, epoch: int) -> NDArray[Any]:
        """a_i at each step of an epoch, (steps, slots).

        With `at_least_one_student`, a step that would swap every slot keeps one of them, drawn uniformly.
        """
        rng = np.random.Generator(np.random.PCG64(derive("swap", self.seed, epoch)))
        uniform = rng.random((self.timeline.steps_in(epoch), self.slots + 1))
        return self._kept_where(uniform, self.planned(epoch))

    def masks(self, step: int, batch_size: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """One mask per slot for a step of the training, for a `part` of a batch of `batch_size` images."""
        epoch, position = self.timeline.locate(step)
        if epoch != self._epoch:
            self._epoch, self._kept = epoch, self.drawn(epoch).tolist()
        return self._kept[position]

    def _kept_where(self, uniform: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Compare uniform numbers (n, slots + 1) with p; the last column decides for rows without a student block."""
        kept = uniform[:, : self.slots] < p
        if self.at_least_one_student:
            none = ~kept.any(axis=1)
            kept[none, (uniform[none, -1] * self.slots).astype(int)] = True
        return kept


class _PerRowSwapSampler(SwapSampler):
    """Draws for each of `rows` images or channels separately."""

    def __init__(
        self, schedule: Schedule, timeline: Timeline, slots: int, seed: int, at_least_one_student: bool, rows: int
    ) -> None:
        super().__init__(schedule, timeline, slots, seed, at_least_one_student)
        self.rows = rows

    def drawn(self, epoch: int) -> NDArray[Any]:
        """Share of rows for which the student is kept, (steps, slots)."""
        steps = range(self.timeline.first_step(epoch), self.timeline.first_step(epoch + 1))
        return np.stack([self._uniform_and_kept(step)[1].mean(axis=0) for step in steps])

    def probabilities(self, step: int) -> NDArray[np.float64]:
        """p_i at one step, (slots,)."""
        epoch, position = self.timeline.locate(step)
        if epoch != self._epoch:
            self._epoch, self._planned = epoch, self.planned(epoch)
        return self._planned[position]

    def _uniform_and_kept(self, step: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The uniform numbers of a step, (rows, slots + 1), and where they keep the student, (rows, slots)."""
        rng = np.random.Generator(np.random.PCG64(derive("swap", self.seed, "step", step)))
        uniform = rng.random((self.rows, self.slots + 1))
        return uniform, self._kept_where(uniform, self.probabilities(step))


class SampleSwapSampler(_PerRowSwapSampler):
    """Draws for each image of the batch separately."""

    def masks(self, step: int, batch_size: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """bool (B,) per slot; a plain bool where the whole batch is alike.

        BatchNorm cannot normalise a single image. So where one image alone would take the student's branch, the image
        that came nearest to it joins it.
        """
        uniform, kept = self._uniform_and_kept(step)
        kept = kept[:batch_size]
        for slot in np.flatnonzero(kept.sum(axis=0) == 1):
            others = np.where(kept[:, slot], np.inf, uniform[:batch_size, slot])
            kept[others.argmin(), slot] = True
        masks = [_simplified(torch.from_numpy(column)) for column in kept.T.copy()]
        return [mask if isinstance(mask, bool) else mask[part] for mask in masks]


class ChannelSwapSampler(_PerRowSwapSampler):
    """Draws for each channel separately: the student's with probability p, else the teacher's or the mean of both,
    with equal chances.

    `channels`: number of channels of each slot's output. Some channel always has the student's gradient, so
    `at_least_one_student` is not needed.
    """

    def __init__(self, schedule: Schedule, timeline: Timeline, slots: int, seed: int, channels: Sequence[int]) -> None:
        super().__init__(schedule, timeline, slots, seed, False, max(channels))
        self.channels = channels

    def masks(self, step: int, batch_size: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """The student's weight 1, 0 or ½ in each channel, float32 (channels,) per slot."""
        uniform, kept = self._uniform_and_kept(step)
        halves = uniform[:, : self.slots] < (1 + self.probabilities(step)) / 2
        weights = np.where(kept, 1.0, np.where(halves, 0.5, 0.0)).astype(np.float32)
        columns = zip(weights.T.copy(), self.channels, strict=True)
        return [_simplified(torch.from_numpy(column[:count])) for column, count in columns]


def _simplified(kept: Tensor) -> KeepMask:
    if (kept == 1).all():
        return True
    return kept if (kept != 0).any() else False


def make_swap_sampler(
    options: IakdOptions,
    schedule: Schedule,
    timeline: Timeline,
    channels: Sequence[int],
    seed: int,
    only_blocks_train: bool,
) -> SwapSampler:
    """The sampler for `options.granularity` and a hybrid whose slots return `channels` channels.

    `only_blocks_train`: a step that swaps every slot would train nothing, so by default at least one is kept.
    """
    at_least_one = only_blocks_train if options.at_least_one_student is None else options.at_least_one_student
    common = (schedule, timeline, len(channels), seed)
    match options.granularity:
        case "sample":
            return SampleSwapSampler(*common, at_least_one, timeline.batch_size)
        case "channel":
            return ChannelSwapSampler(*common, channels)
        case _:
            return SwapSampler(*common, at_least_one)

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


class _StepDraws(SwapSampler):
    """Draws for each image or channel separately, so that each step has a random stream of its own."""

    def shares(self, step: int) -> NDArray[np.float64]:
        """The share of images or channels for which the student is kept at a step, (slots,)."""
        raise NotImplementedError

    def drawn(self, epoch: int) -> NDArray[Any]:
        """The share of images or channels for which the student is kept, (steps, slots)."""
        steps = range(self.timeline.first_step(epoch), self.timeline.first_step(epoch + 1))
        return np.stack([self.shares(step) for step in steps])

    def probabilities(self, step: int) -> NDArray[np.float64]:
        """p_i at one step, (slots,)."""
        epoch, position = self.timeline.locate(step)
        if epoch != self._epoch:
            self._epoch, self._planned = epoch, self.planned(epoch)
        return self._planned[position]

    def _uniform(self, step: int, rows: int) -> NDArray[np.float64]:
        """The random numbers of a step, (rows, slots + 1)."""
        rng = np.random.Generator(np.random.PCG64(derive("swap", self.seed, "step", step)))
        return rng.random((rows, self.slots + 1))


class SampleSwapSampler(_StepDraws):
    """Draws for each image of the batch separately.

    BatchNorm cannot normalise a single image. So where one image alone would take the student's branch, the image that
    came nearest to it joins it. Where one alone would take the teacher's, it takes the student's, but only in `strict`
    slots (bool per slot): those whose teacher's branch refuses a single image.
    """

    def __init__(
        self,
        schedule: Schedule,
        timeline: Timeline,
        slots: int,
        seed: int,
        at_least_one_student: bool = False,
        strict: Sequence[bool] = (),
    ) -> None:
        super().__init__(schedule, timeline, slots, seed, at_least_one_student)
        self.strict = strict

    def masks(self, step: int, batch_size: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """bool (B,) per slot; a plain bool where the whole batch is alike."""
        masks = [_simplified(torch.from_numpy(column)) for column in self._kept_images(step, batch_size).T.copy()]
        return [mask if isinstance(mask, bool) else mask[part] for mask in masks]

    def shares(self, step: int) -> NDArray[np.float64]:
        """The share of the batch's images that take the student's branch, (slots,)."""
        return self._kept_images(step, self.timeline.images_in(step)).mean(axis=0)

    def _kept_images(self, step: int, batch_size: int) -> NDArray[np.bool_]:
        """Which images take the student's branch of each slot, (batch_size, slots)."""
        uniform = self._uniform(step, self.timeline.batch_size)  # a smaller batch gets the first of the same numbers
        kept = self._kept_where(uniform, self.probabilities(step))[:batch_size]
        for slot in np.flatnonzero(kept.sum(axis=0) == 1):
            others = np.where(kept[:, slot], np.inf, uniform[:batch_size, slot])
            kept[others.argmin(), slot] = True
        for slot in np.flatnonzero(self.strict):
            if (~kept[:, slot]).sum() == 1:
                kept[:, slot] = True
        return kept


class ChannelSwapSampler(_StepDraws):
    """Draws for each channel separately: the student's with probability p, else the teacher's or the mean of both,
    with equal chances.

    `channels`: number of channels of each slot's output. With `at_least_one_student`, a step that would take every
    channel of every slot from the teacher alone takes one from the student: in a slot drawn uniformly, the channel that
    came nearest to it.
    """

    def __init__(
        self,
        schedule: Schedule,
        timeline: Timeline,
        slots: int,
        seed: int,
        channels: Sequence[int],
        at_least_one_student: bool = False,
    ) -> None:
        super().__init__(schedule, timeline, slots, seed, at_least_one_student)
        self.channels = channels

    def masks(self, step: int, batch_size: int, part: slice = WHOLE_BATCH) -> Sequence[KeepMask]:
        """The student's weight 1, 0 or ½ in each channel, float32 (channels,) per slot."""
        return [_simplified(torch.from_numpy(column)) for column in self._weights(step)]

    def shares(self, step: int) -> NDArray[np.float64]:
        """The share of each slot's channels that are the student's alone, (slots,)."""
        return np.array([(weights == 1).mean() for weights in self._weights(step)])

    def _weights(self, step: int) -> list[NDArray[np.float32]]:
        uniform, p = self._uniform(step, max(self.channels)), self.probabilities(step)
        numbers = [uniform[:count, slot] for slot, count in enumerate(self.channels)]
        weights = [
            np.where(u < p[slot], 1.0, np.where(u < (1 + p[slot]) / 2, 0.5, 0.0)).astype(np.float32)
            for slot, u in enumerate(numbers)
        ]
        if self.at_least_one_student and not any(each.any() for each in weights):
            slot = int(uniform[0, -1] * self.slots)
            weights[slot][numbers[slot].argmin()] = 1.0
        return weights


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
    strict: Sequence[bool] = (),
) -> SwapSampler:
    """The sampler for `options.granularity` and a hybrid whose slots return `channels` channels.

    `only_blocks_train`: a step that swaps every slot would train nothing, so by default at least one is kept.
    `strict`: whether the teacher's branch of each slot refuses a single image.
    """
    at_least_one = only_blocks_train if options.at_least_one_student is None else options.at_least_one_student
    common = (schedule, timeline, len(channels), seed)
    match options.granularity:
        case "sample":
            return SampleSwapSampler(*common, at_least_one, strict)
        case "channel":
            return ChannelSwapSampler(*common, channels, at_least_one)
        case _:
            return SwapSampler(*common, at_least_one)

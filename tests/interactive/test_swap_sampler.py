"""Draws of the swap samplers: their random streams, parts of a batch, images that join others, and who draws what."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from iakd.config import IakdOptions, LrSchedule, Schedule
from iakd.interactive.swap_sampler import ChannelSwapSampler, SampleSwapSampler, SwapSampler, make_swap_sampler
from iakd.seeding import derive
from iakd.training.timeline import Timeline

TIMELINE = Timeline(epochs=4, steps_per_epoch=50, peak=0.1, lr_schedule=LrSchedule(milestones=[0.5]), batch_size=8)


def uniform(p0: float) -> Schedule:
    return Schedule(kind="uniform", p0=p0, student_only=0.0)


def as_bools(mask: bool | Tensor, size: int) -> list[bool]:
    return [mask] * size if isinstance(mask, bool) else mask.tolist()


def test_an_epoch_has_a_stream_of_its_own_by_name_and_seed() -> None:
    """Column i of the numbers drawn is compared with p_i; a renamed stream would change every result."""
    schedule = Schedule(kind="linear", p0=0.2, slope=0.3)
    sampler = SwapSampler(schedule, TIMELINE, 3, seed=7)
    for epoch in range(4):
        numbers = np.random.Generator(np.random.PCG64(derive("swap", 7, epoch))).random((50, 4))
        assert np.array_equal(sampler.drawn(epoch), numbers[:, :3] < sampler.planned(epoch))
    assert not np.array_equal(
        SwapSampler(uniform(0.5), TIMELINE, 3, 7).drawn(0), SwapSampler(uniform(0.5), TIMELINE, 3, 7).drawn(1)
    )


def test_planned_probabilities_are_those_of_the_epochs_steps() -> None:
    sampler = SwapSampler(Schedule(kind="linear", p0=0.0, t_end=1.0, student_only=0.0), TIMELINE, 2, 0)
    assert np.concatenate([sampler.planned(epoch)[:, 1] for epoch in range(4)]) == pytest.approx(np.arange(200) / 200)
    reviewed = SwapSampler(Schedule(kind="review", p0=0.0, student_only=0.0), TIMELINE, 1, 0)
    assert reviewed.planned(2)[0, 0] == 0.0 < reviewed.planned(1)[-1, 0], "restarted where the learning rate drops"


def test_at_least_one_student_adds_to_the_empty_steps_alone() -> None:
    free = SwapSampler(uniform(0.3), TIMELINE, 3, 0).drawn(1)
    held = SwapSampler(uniform(0.3), TIMELINE, 3, 0, at_least_one_student=True).drawn(1)
    empty = ~free.any(axis=1)
    assert empty.any() and not empty.all()
    assert np.array_equal(held[~empty], free[~empty]) and (held[empty].sum(axis=1) == 1).all()


def test_the_one_that_stays_is_drawn_evenly_at_any_probability() -> None:
    """It must not depend on the numbers that left the step without a student block."""
    counts = np.zeros(3)
    for seed in range(40):
        free, held = (SwapSampler(uniform(0.5), TIMELINE, 3, seed, held).drawn(0) for held in (False, True))
        counts += held[~free.any(axis=1)].sum(axis=0)
    expected = counts.sum() / 3
    assert expected > 60
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_step_has_a_stream_of_its_own_where_images_are_drawn() -> None:
    sampler = SampleSwapSampler(uniform(0.5), TIMELINE, 2, 3)
    for step in (0, 1, 77):
        numbers = np.random.Generator(np.random.PCG64(derive("swap", 3, "step", step))).random((8, 3))
        kept = np.array([as_bools(mask, 8) for mask in sampler.masks(step, 8)]).T
        expected = numbers[:, :2] < 0.5
        several = expected.sum(axis=0) != 1
        assert np.array_equal(kept[:, several], expected[:, several])


def test_the_image_that_joins_another_is_the_one_that_came_nearest() -> None:
    """So what is kept at a smaller p is kept at every larger one."""
    rates = np.linspace(0.05, 1, 39)
    joined = 0
    for step in range(40):
        masks = [SampleSwapSampler(uniform(p), TIMELINE, 1, 0).masks(step, 8)[0] for p in rates]
        sets = [{i for i, kept in enumerate(as_bools(mask, 8)) if kept} for mask in masks]
        assert all(smaller <= larger for smaller, larger in pairwise(sets))
        assert all(len(kept) != 1 for kept in sets)
        joined += sum(len(kept) == 2 for kept in sets)
    assert joined > 20


@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 8), slice(7, 8)])
def test_a_part_of_a_batch_gets_its_part_of_the_draws(part: slice) -> None:
    sampler = SampleSwapSampler(uniform(0.4), TIMELINE, 3, 0)
    for step in range(30):
        for whole, mine in zip(sampler.masks(step, 8), sampler.masks(step, 8, part), strict=True):
            if isinstance(whole, bool):
                assert mine is whole
            else:
                assert isinstance(mine, Tensor) and mine.tolist() == whole[part].tolist()


def test_a_smaller_batch_gets_the_first_draws() -> None:
    """The last batch of an epoch; no image of it is alone, either."""
    sampler = SampleSwapSampler(uniform(0.5), TIMELINE, 1, 0)
    for step in range(60):
        whole, first = as_bools(sampler.masks(step, 8)[0], 8), as_bools(sampler.masks(step, 3)[0], 3)
        assert len(first) == 3 and sum(first) != 1
        if sum(whole[:3]) != 1:
            assert first == whole[:3]


def test_what_is_alike_for_the_whole_batch_is_a_plain_bool() -> None:
    for p, expected in ((0.0, False), (1.0, True)):
        assert SampleSwapSampler(uniform(p), TIMELINE, 2, 0).masks(5, 8) == [expected] * 2
    assert ChannelSwapSampler(uniform(1.0), TIMELINE, 2, 0, [4, 6]).masks(5, 8) == [True, True]


def test_channels_of_a_slot_have_three_outcomes_from_one_number_each() -> None:
    """Below p the student's, from there half-way to 1 the mean, and the teacher's above."""
    sampler = ChannelSwapSampler(uniform(0.4), TIMELINE, 2, 5, [6, 4])
    numbers = np.random.Generator(np.random.PCG64(derive("swap", 5, "step", 9))).random((6, 3))
    for slot, (mask, count) in enumerate(zip(sampler.masks(9, 8), (6, 4), strict=True)):
        assert isinstance(mask, Tensor) and mask.dtype == torch.float32
        expected = [1.0 if u < 0.4 else 0.5 if u < 0.7 else 0.0 for u in numbers[:count, slot]]
        assert mask.tolist() == expected


SHORT = replace(TIMELINE, last_batches=(3,))  # images of each epoch's last step


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("strict", [(), (True, False, True)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_record_is_the_share_of_images_that_masks_keep(p: float, strict: tuple[bool, ...], held: bool) -> None:
    """With images that join others, and with the last batch's size: not what was drawn at first."""
    sampler = SampleSwapSampler(uniform(p), SHORT, 3, 0, held, strict)
    drawn = sampler.drawn(2)
    assert drawn.shape == (50, 3)
    for position, shares in enumerate(drawn):
        size = 3 if position == 49 else 8
        kept = [as_bools(mask, size) for mask in sampler.masks(100 + position, size)]
        assert shares == pytest.approx(np.mean(kept, axis=1))
    record = sampler.record(2)
    for slot in range(3):
        assert record[f"p_planned_{slot}"] == p
        assert record[f"p_drawn_{slot}"] == pytest.approx(drawn[:, slot].mean(), abs=1e-6)


def test_pairs_of_images_are_in_the_record() -> None:
    """With eight images and p = 0.1, an image alone is frequent: E[kept] = 8·p + P(exactly one)."""
    sampler = SampleSwapSampler(uniform(0.1), replace(TIMELINE, steps_per_epoch=4000), 1, 0)
    expected = 0.1 + 8 * 0.1 * 0.9**7 / 8
    assert expected == pytest.approx(0.148, abs=5e-4)
    assert sampler.record(0)["p_drawn_0"] == pytest.approx(expected, abs=4.5 * np.sqrt(0.03 / 4000))


def test_an_image_alone_with_the_teacher_goes_to_the_student_in_strict_slots_only() -> None:
    free, strict = (SampleSwapSampler(uniform(0.8), TIMELINE, 2, 0, False, each) for each in ((), (False, True)))
    seen: set[tuple[int, int]] = set()
    for step in range(100):
        for size in (2, 3, 8):
            was, now = ([as_bools(mask, size) for mask in each.masks(step, size)] for each in (free, strict))
            assert was[0] == now[0]
            assert now[1] == ([True] * size if was[1].count(False) == 1 else was[1])
            seen.add((size, was[1].count(False)))
    assert {(2, 0), (2, 2), (3, 0), (3, 1), (8, 1), (8, 2)} <= seen and not {(2, 1), (3, 2)} & seen


def test_the_record_of_channels_is_that_of_each_slot_s_own() -> None:
    """Slots have different numbers of channels; the numbers drawn for the widest do not count in the others."""
    sampler = ChannelSwapSampler(uniform(0.4), TIMELINE, 2, 5, [6, 1])
    drawn = sampler.drawn(1)
    for position, shares in enumerate(drawn):
        for share, mask, count in zip(shares, sampler.masks(50 + position, 8), (6, 1), strict=True):
            weights = [float(mask)] * count if isinstance(mask, bool) else mask.tolist()
            assert share == weights.count(1.0) / count
    assert set(drawn[:, 1].tolist()) == {0.0, 1.0}


def test_at_least_one_student_holds_for_channels() -> None:
    """Otherwise a step of narrow networks with a frozen stem and head may train nothing."""
    empty = Counter[int]()
    for seed, step in product(range(5), range(200)):
        was, now = (
            ChannelSwapSampler(uniform(0.1), TIMELINE, 2, seed, [2, 3], held).masks(step, 8) for held in (False, True)
        )
        if any(mask is not False for mask in was):
            for one, other in zip(was, now, strict=True):
                assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
            continue
        (slot,) = (slot for slot, mask in enumerate(now) if mask is not False)
        numbers = np.random.Generator(np.random.PCG64(derive("swap", seed, "step", step))).random((3, 3))
        mask = now[slot]
        assert isinstance(mask, Tensor) and mask.sum() == 1
        assert int(mask.argmax()) == int(numbers[: (2, 3)[slot], slot].argmin())
        empty[slot] += 1
    assert min(empty[0], empty[1]) >= 3


def test_probabilities_of_a_step_follow_the_schedule_across_epochs() -> None:
    sampler = SampleSwapSampler(Schedule(kind="linear", p0=0.0, t_end=1.0, student_only=0.0), TIMELINE, 2, 0)
    assert [sampler.probabilities(step)[0] for step in (60, 0, 199, 50)] == pytest.approx([0.3, 0.0, 0.995, 0.25])


@pytest.mark.parametrize(
    ("granularity", "kind"), [("batch", SwapSampler), ("sample", SampleSwapSampler), ("channel", ChannelSwapSampler)]
)
def test_the_sampler_is_that_of_the_granularity(granularity: str, kind: type[SwapSampler]) -> None:
    sampler = make_swap_sampler(IakdOptions(granularity=granularity), uniform(0.5), TIMELINE, [4, 6, 6], 9, False)
    assert type(sampler) is kind
    assert (sampler.slots, sampler.seed, sampler.timeline) == (3, 9, TIMELINE)
    sizes = {len(mask) for step in range(20) for mask in sampler.masks(step, 8) if isinstance(mask, Tensor)}
    assert sizes == {"batch": set(), "sample": {8}, "channel": {4, 6}}[granularity]


@pytest.mark.parametrize("granularity", ["batch", "sample", "channel"])
@pytest.mark.parametrize(
    ("wanted", "only_blocks_train", "held"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
)
def test_at_least_one_student_is_a_choice_whose_default_is_what_must_be(
    granularity: str, wanted: bool | None, only_blocks_train: bool, held: bool
) -> None:
    options = IakdOptions(granularity=granularity, at_least_one_student=wanted)
    channels = [1, 1]
    sampler = make_swap_sampler(options, uniform(0.0), TIMELINE, channels, 0, only_blocks_train)
    empty = [all(mask is False for mask in sampler.masks(step, 8)) for step in range(50)]
    assert any(empty) is not held and (granularity == "channel" or all(empty) is not held)

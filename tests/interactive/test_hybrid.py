"""The hybrid network: what it computes, what is trained, what stays unchanged, and how often blocks are swapped."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from small import network

from iakd import models
from iakd.config import IakdOptions, LrSchedule, Normalisation, Schedule
from iakd.errors import UserError
from iakd.interactive.hybrid import Hybrid
from iakd.interactive.swap_sampler import SwapSampler, make_swap_sampler
from iakd.models.normalisation import adapt_input
from iakd.models.pairing import initialise_from_teacher
from iakd.training.timeline import Timeline

TIMELINE = Timeline(
    epochs=40, steps_per_epoch=25, peak=0.1, lr_schedule=LrSchedule(milestones=[0.4, 0.7]), batch_size=6
)
NEVER, ALWAYS = [False] * 3, [True] * 3


def hybrid(student: models.Network, teacher: models.Network, **settings: object) -> Hybrid:
    net = Hybrid(student, teacher, IakdOptions(**settings), seed=0)
    net.train()
    return net


def trained_beside_the_student(net: Hybrid) -> list[torch.nn.Parameter]:
    of_student = {id(p) for p in net.student.parameters()}
    return [p for p in net.parameters() if p.requires_grad and id(p) not in of_student]


def test_all_kept_is_the_student(student: models.Network, teacher: models.Network, images: torch.Tensor) -> None:
    twin = copy.deepcopy(student)
    assert torch.equal(hybrid(student, teacher)(images, ALWAYS), twin.train()(images))


def test_all_swapped_is_the_teachers_blocks_between_the_students_stem_and_head(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    twin = copy.deepcopy(student).train()
    features = twin.stem(images)
    for block in teacher.blocks:
        features = block(features)
    assert torch.equal(hybrid(student, teacher)(images, NEVER), twin.head(features))


@pytest.mark.parametrize("kept", [[True, False, True], [False, True, False], [True, True, False]])
def test_a_swapped_group_is_all_the_teachers_blocks_of_the_pair(
    student: models.Network, teacher: models.Network, images: torch.Tensor, kept: list[bool]
) -> None:
    twin = copy.deepcopy(student).train()
    features = twin.stem(images)
    for position, keep in enumerate(kept):
        chain = [twin.blocks[position]] if keep else teacher.blocks[3 * position : 3 * position + 3]
        for block in chain:
            features = block(features)
    assert torch.equal(hybrid(student, teacher)(images, kept), twin.head(features))


def test_gradients_reach_student_blocks_through_swapped_teacher_blocks(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    F.cross_entropy(hybrid(student, teacher)(images, [True, False, False]), torch.arange(6)).backward()
    first, second, third = student.blocks
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.stem.parameters())
    assert all(p.grad is None for block in (second, third) for p in block.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_gradient_through_the_teacher_is_the_true_one(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    """Against finite differences in float64, at one weight of the student's first block."""
    student, teacher, images = student.double(), teacher.double(), images.double()
    net = hybrid(student, teacher)
    weight = student.blocks[0].conv1.weight

    def loss() -> torch.Tensor:
        return F.cross_entropy(net(images, [True, False, True]), torch.arange(6))

    loss().backward()
    assert weight.grad is not None
    step = 1e-7  # small enough for no ReLU to change sides
    with torch.no_grad():
        weight[0, 0, 1, 1] += step
        above = loss().item()
        weight[0, 0, 1, 1] -= 2 * step
        below = loss().item()
    assert weight.grad[0, 0, 1, 1].item() == pytest.approx((above - below) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("teacher_bn", ["eval", "batch"])
def test_steps_leave_the_teacher_byte_identical(
    student: models.Network, teacher: models.Network, images: torch.Tensor, teacher_bn: str
) -> None:
    before = models.save_weights(teacher)
    net = hybrid(student, teacher, teacher_bn=teacher_bn)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5, weight_decay=0.1)
    for kept in (NEVER, [True, False, True], ALWAYS, [False, False, True]):
        optimizer.zero_grad()
        F.cross_entropy(net(images, kept), torch.arange(6)).backward()
        optimizer.step()
        net.train()
    assert models.save_weights(teacher) == before
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_teacher_bn_batch_uses_the_statistics_of_the_batch(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    reference = copy.deepcopy(teacher).train()
    features = copy.deepcopy(student).train().stem(images)
    for block in reference.blocks:
        features = block(features)
    logits = hybrid(copy.deepcopy(student), teacher, teacher_bn="batch")(images, NEVER)
    assert torch.equal(logits, student.head(features))
    assert not torch.equal(logits, hybrid(copy.deepcopy(student), teacher)(images, NEVER))


def test_stem_and_head_of_the_teacher_are_copied_and_frozen(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    net = hybrid(student, teacher, stem="teacher", head="teacher")
    assert torch.equal(net(images, NEVER), teacher(images))
    before = models.save_weights(student)
    F.cross_entropy(net(images, [True, False, False]), torch.arange(6)).backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    assert models.save_weights(student) != before
    for ours, theirs in ((student.stem, teacher.stem), (student.head, teacher.head)):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("width", [2, 8])
def test_unequal_widths_swap_through_adapters_that_learn_and_are_not_the_students(
    teacher: models.Network, images: torch.Tensor, width: int
) -> None:
    student = network("resnet8", seed=2, width=width)
    names = set(student.state_dict())
    net = hybrid(student, teacher)
    F.cross_entropy(net(images, NEVER), torch.arange(6)).backward()
    adapters = trained_beside_the_student(net)
    assert adapters and all(p.grad is not None for p in adapters)
    assert set(student.state_dict()) == names


def test_equal_widths_need_no_adapters(student: models.Network, teacher: models.Network) -> None:
    assert trained_beside_the_student(hybrid(student, teacher)) == []


def test_a_frozen_copy_where_shapes_differ_is_refused(teacher: models.Network) -> None:
    with pytest.raises(UserError, match="the teacher's stem does not fit"):
        hybrid(network("resnet8", seed=2, width=8), teacher, stem="teacher")


def test_a_student_initialised_from_the_teacher_has_its_weights_and_trains_in_train_mode(
    student: models.Network, teacher: models.Network, images: torch.Tensor
) -> None:
    initialise_from_teacher(student, teacher)
    for ours, theirs in zip(student.blocks, teacher.blocks[::3], strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
    student.train()
    assert all(module.training for module in student.modules())
    F.cross_entropy(student(images), torch.arange(6)).backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    for ours, theirs in zip(student.blocks, teacher.blocks[::3], strict=True):
        assert not torch.equal(ours.conv1.weight, theirs.conv1.weight)
        assert not torch.equal(ours.bn1.running_mean, theirs.bn1.running_mean)


# --- draws ---


@pytest.mark.parametrize("kind", ["uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic"])
@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_swap_counts_fit_bernoulli_in_every_phase(kind: str, slope: float) -> None:
    """Over 200 seeds the number of kept blocks in each quarter is within a binomial's 1e-5 tails."""
    schedule = Schedule(kind=kind, p0=0.3, p1=0.9, slope=slope, student_only=0.2)
    seeds = 200
    draws = [SwapSampler(schedule, TIMELINE, 3, seed, False) for seed in range(seeds)]
    for epoch in (0, 7, 15, 16, 20, 28, 31):
        planned = draws[0].planned(epoch)
        counts = np.sum([d.drawn(epoch) for d in draws], axis=(0, 1))
        mean = seeds * planned.sum(axis=0)
        deviation = np.sqrt(seeds * (planned * (1 - planned)).sum(axis=0))
        limit = stats.norm.isf(1e-5)
        assert (np.abs(counts - mean) <= limit * np.maximum(deviation, 1e-9)).all(), (epoch, counts, mean)
    assert draws[0].drawn(35).all(), "the student_only phase keeps every block"


def test_blocks_steps_and_seeds_are_independent() -> None:
    draws = np.concatenate(
        [
            SwapSampler(Schedule(kind="uniform", student_only=0.0), TIMELINE, 4, seed, False).drawn(0)
            for seed in range(400)
        ]
    )
    correlation = np.corrcoef(np.concatenate([draws[:-1], draws[1:]], axis=1).T) - np.eye(8)
    assert np.abs(correlation).max() < 0.05


def test_draws_can_be_replayed_and_differ_between_seeds() -> None:
    one, again, other = (SwapSampler(Schedule(), TIMELINE, 3, seed, False) for seed in (5, 5, 6))
    steps = [0, 999, 24, 25, 500, 3]
    assert [one.masks(step, 6) for step in steps] == [again.masks(step, 6) for step in reversed(steps)][::-1]
    assert any(one.masks(step, 6) != other.masks(step, 6) for step in range(100))
    assert one.drawn(2)[5].tolist() == one.masks(2 * 25 + 5, 6)


def test_with_a_frozen_stem_and_head_a_step_always_has_something_to_train(
    student: models.Network, teacher: models.Network
) -> None:
    options = IakdOptions(stem="teacher", head="teacher")
    net = Hybrid(student, teacher, options, seed=0)
    sampler = make_swap_sampler(options, Schedule(p0=0.0, p1=0.0), TIMELINE, [4] * 3, 0, net.only_blocks_train)
    kept = np.concatenate([sampler.drawn(epoch) for epoch in range(30)])
    assert (kept.sum(axis=1) == 1).all()
    shares = kept.mean(axis=0)
    assert (np.abs(shares - 1 / 3) < 0.08).all(), "the block that stays is drawn uniformly"


def test_with_a_trained_stem_p_0_swaps_everything(student: models.Network, teacher: models.Network) -> None:
    net = Hybrid(student, teacher, IakdOptions(), seed=0)
    schedule = Schedule(p0=0.0, p1=0.0)
    sampler = make_swap_sampler(IakdOptions(), schedule, TIMELINE, [4] * 3, 0, net.only_blocks_train)
    assert not any(sampler.drawn(epoch).any() for epoch in range(30))


def test_a_teacher_with_another_normalisation_gets_images_in_that_normalisation(images: torch.Tensor) -> None:
    """VGG has no stem: its first block takes the image itself."""
    teacher, student = network("vgg8", seed=1).eval(), network("vgg8", seed=2)
    adapt_input(teacher, Normalisation(mean=[0.5], std=[0.25]), [0.1], [0.5])
    adapt_input(student, None, [0.1], [0.5])
    net = hybrid(student, teacher)
    student.eval()
    features = teacher.enter(images)
    for block in teacher.blocks:
        features = block(features)
    torch.testing.assert_close(net(images, [False] * 5), student.head(features))

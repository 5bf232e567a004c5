"""ft, fsp and ab: their losses against the formulas, and what they train when."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from digit_training import fixed_batch, loss_between, make_training
from gradients import Array, agree, finite

from iakd.distillation.losses.ab import boundary_loss
from iakd.distillation.losses.fsp import flows
from iakd.distillation.losses.ft import factor_loss
from iakd.errors import UserError


def ft_reference(student: Array, teacher: Array) -> float:
    """Mean over images and positions of |a_s/‖a_s‖ − a_t/‖a_t‖|, a the mean of squares over channels."""
    attention = []
    for maps in (student, teacher):
        a = (maps**2).mean(1).reshape(len(maps), -1)
        attention.append(np.array([row / np.linalg.norm(row) for row in a]))
    return float(np.abs(attention[0] - attention[1]).mean())


def ab_reference(student: Array, teacher: Array) -> float:
    """(1/B)·Σ (s + m)² where t ≤ 0 and s > −m, (s − m)² where t > 0 and s ≤ m; m = 1."""
    total = 0.0
    for s, t in zip(student.ravel(), teacher.ravel(), strict=True):
        if t <= 0 and s > -1:
            total += (s + 1) ** 2
        if t > 0 and s <= 1:
            total += (s - 1) ** 2
    return total / len(student)


def flow_reference(lower: Array, upper: Array) -> Array:
    """G_ij = mean over positions of lower_i·upper_j, for each image; the lower map pooled to the upper's size."""
    b, c, h, w = lower.shape
    step = h // upper.shape[2]
    lower = lower.reshape(b, c, h // step, step, w // step, step).mean((3, 5))
    return np.array([[[(x * y).mean() for y in up] for x in low] for low, up in zip(lower, upper, strict=True)])


def test_ft_value_and_gradient() -> None:
    rng = np.random.default_rng(0)
    agree(factor_loss, ft_reference, rng.normal(size=(3, 4, 3, 3)), rng.normal(size=(3, 5, 3, 3)))


def test_ab_value_and_gradient() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, 3, 4, 2, 2))
    teacher[0, 0] = 0  # what a ReLU has cut off is on the side of the negative
    agree(lambda s, t: boundary_loss(s, t, 1.0), ab_reference, student, teacher)


def test_ab_is_zero_beyond_the_margin_whatever_the_distance() -> None:
    teacher = torch.tensor([[0.01, -5.0, 0.0]])
    assert boundary_loss(torch.tensor([[1.0, -1.0, -70.0]]), teacher, 1.0) == 0
    assert boundary_loss(torch.tensor([[-1.0, -1.0, 1.0]]), teacher, 1.0) == 8


@pytest.mark.parametrize("shapes", [((2, 3, 4, 4), (2, 5, 4, 4)), ((3, 2, 4, 4), (3, 4, 2, 2))])
def test_flows(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=shape) for shape in shapes]
    (flow,) = flows(tuple(torch.tensor(each, dtype=torch.float32) for each in maps))
    assert flow.numpy() == pytest.approx(flow_reference(*maps), rel=1e-4, abs=1e-6)


def test_fsp_is_the_squared_difference_of_flows_from_the_stem_on() -> None:
    part, step = loss_between("fsp", "resnet8", "resnet14")
    both = []
    for network, places in ((step.student, [0, 1, 2]), (step.teacher, [1, 3, 5])):
        maps = [each.double().detach().numpy() for each in (network.stem, *(network.blocks[i] for i in places))]
        both.append([flow_reference(*pair) for pair in pairwise(maps)])
    expected = sum(((s - t) ** 2).mean() for s, t in zip(*both, strict=True))
    assert part(step)["fsp"].item() == pytest.approx(expected, rel=1e-3)


def test_ab_weighs_later_levels_more() -> None:
    part, step = loss_between("ab", "resnet8", "resnet14")
    expected = 0.0
    for weight, ours, theirs in ((0.25, 0, 1), (0.5, 1, 3), (1.0, 2, 5)):
        maps = step.student.preactivations[ours], step.teacher.preactivations[theirs]
        expected += 0.003 * weight * ab_reference(*(each.double().detach().numpy() for each in maps))
    assert part(step)["ab"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["ft", "ab"])
@pytest.mark.parametrize(
    ("teacher", "student"),
    [("wrn_16_2", "ShuffleV1"), ("vgg11", "MobileNetV2"), ("ResNet18", "vgg8"), ("wrn_16_2", "wrn_16_1")],
)
def test_networks_of_different_kinds(name: str, teacher: str, student: str) -> None:
    part, step = loss_between(name, student, teacher)
    for number in (0, 1999):
        terms = part(type(step)(**{**vars(step), "step": number}))
        loss = torch.stack(list(terms.values())).sum()
        assert torch.isfinite(loss) and loss.dtype == torch.float32
        loss.backward(retain_graph=True)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in part.parameters())


def test_fsp_of_vggs_starts_with_the_maps_of_their_first_stage() -> None:
    """RepDistiller's models/vgg.py: f0 is 64 channels at 32×32, and helper/pretrain.py compares f0 to f4."""
    part, step = loss_between("fsp", "vgg8", "vgg11")
    assert step.student.stem is None
    both = []
    for features, places in ((step.student, range(5)), (step.teacher, [0, 1, 3, 5, 7])):
        maps = [features.blocks[i].double().detach().numpy() for i in places]
        both.append([flow_reference(*pair) for pair in pairwise(maps)])
    assert [flow.shape[1:] for flow in both[0]] == [(64, 128), (128, 256), (256, 512), (512, 512)]
    expected = sum(((s - t) ** 2).mean() for s, t in zip(*both, strict=True))
    assert part(step)["fsp"].item() == pytest.approx(expected, rel=1e-3)


def test_fsp_does_not_start_where_the_first_level_is() -> None:
    """With four stages against three, VGG is compared after its first stage, too."""
    with pytest.raises(UserError, match="at level 3 the student has 256 and the teacher 512"):
        loss_between("fsp", "resnet8x4", "vgg11")


def test_ft_compares_positions_not_channels() -> None:
    student, teacher = torch.randn(2, 2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    assert factor_loss(student.flip(1), -teacher) == pytest.approx(factor_loss(student, teacher).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("teacher", "student", "words"),
    [
        ("wrn_16_2", "wrn_16_1", "at level 1 the student has 16 and the teacher 32"),
        ("resnet8x4", "resnet8", "at the start the student has 16 and the teacher 32"),
    ],
)
def test_fsp_says_which_channels_differ(teacher: str, student: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        loss_between("fsp", student, teacher)


def test_finite_at_the_edges() -> None:
    some, other = torch.randn(2, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for student, teacher in ((torch.zeros_like(some), other), (some, torch.zeros_like(some)), (some[:1], other[:1])):
        finite(factor_loss, student, teacher)
        finite(lambda s, t: boundary_loss(s.float(), t.float(), 1.0), student, teacher)
    assert factor_loss(some, some) == 0


@pytest.mark.parametrize("name", ["fsp", "ab"])
def test_labels_wait_for_the_first_phase(name: str) -> None:
    training = make_training(name, options={name: {"pretrain": 0.5}})
    head = {key: value.clone() for key, value in training.objective.student.head.state_dict().items()}
    training.objective.train()
    training.train_step(fixed_batch(training))
    assert all(torch.equal(head[key], value) for key, value in training.objective.student.head.state_dict().items())
    assert set(training.objective(fixed_batch(training), 14)[0]) == {"ce", name}
    terms, _ = training.objective(fixed_batch(training), 15)
    assert set(terms) == {"ce"} and terms["ce"] > 0


@pytest.mark.parametrize("name", ["fsp", "ab"])
def test_the_teacher_is_not_run_when_the_first_phase_is_over(name: str) -> None:
    training = make_training(name, options={name: {"pretrain": 0.5}})
    called: list[int] = []
    training.objective.teacher.blocks[0].register_forward_hook(lambda *_: called.append(1))
    training.objective.teacher.stem.register_forward_hook(lambda *_: called.append(1))
    training.objective(fixed_batch(training), 15)
    assert not called
    training.objective(fixed_batch(training), 14)
    assert called


def test_labels_of_another_loss_do_not_wait() -> None:
    training = make_training("ab+kd", options={"ab": {"pretrain": 0.5}})
    terms, _ = training.objective(fixed_batch(training), 0)
    alone, _ = make_training("kd").objective(fixed_batch(training), 0)
    assert terms["ce"].item() == pytest.approx(alone["ce"].item(), rel=1e-4)


def test_the_paraphraser_learns_first_and_is_frozen_then() -> None:
    training = make_training("ft", options={"ft": {"pretrain": 0.5}})
    (part,) = training.objective.losses.values()
    training.objective.train()

    def changed(step: int) -> tuple[bool, bool]:
        before = {key: value.clone() for key, value in part.state_dict().items()}
        training.step = step
        training.train_step(fixed_batch(training))
        moved = [key for key, value in part.state_dict().items() if not torch.equal(value, before[key])]
        return (
            any(key.startswith(("paraphraser", "rebuilder")) for key in moved),
            any(key.startswith("translator") for key in moved),
        )

    assert changed(14) == (True, False)
    assert changed(15) == (False, True)

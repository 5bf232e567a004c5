"""fitnet, at, nst and vid: losses between maps against their formulas, and what pairs of networks they take."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from digit_training import loss_between, make_training
from gradients import Array, agree, finite
from torch import Tensor

from iakd.distillation.losses.at import attention_loss
from iakd.distillation.losses.maps import Regressor, as_maps, map_shape, match_sizes, pool_to
from iakd.distillation.losses.nst import selectivity_loss
from iakd.distillation.losses.vid import Predictor, gaussian_loss
from iakd.errors import UserError


def halved(maps: Array) -> Array:
    """Average 2×2 windows."""
    b, c, h, w = maps.shape
    return maps.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def at_reference(student: Array, teacher: Array) -> float:
    """Mean over images and positions of (a_s/‖a_s‖ − a_t/‖a_t‖)², a the mean of squares over channels."""
    if student.shape[2] > teacher.shape[2]:
        student = halved(student)
    if teacher.shape[2] > student.shape[2]:
        teacher = halved(teacher)
    attention = []
    for maps in (student, teacher):
        a = (maps**2).mean(1).reshape(len(maps), -1)
        attention.append(np.array([row / np.linalg.norm(row) for row in a]))
    return float(((attention[0] - attention[1]) ** 2).mean())


def nst_reference(student: Array, teacher: Array) -> float:
    """Mean over images of Σ k(t, t')/C_t² + Σ k(s, s')/C_s² − 2·Σ k(s, t)/(C_s·C_t), k(a, b) = (a·b/‖a‖‖b‖)²."""
    if teacher.shape[2] > student.shape[2]:
        teacher = halved(teacher)

    def mean_kernel(a: Array, b: Array) -> float:
        cosines = [[np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
        return float((np.array(cosines) ** 2).mean())

    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        s, t = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
        values.append(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t))
    return float(np.mean(values))


def vid_reference(mean: Array, variance: Array, teacher: Array) -> float:
    """Mean of (t − μ)²/(2σ²) + log(σ): minus the logarithm of the normal density, without log(√(2π))."""
    sigma = np.sqrt(variance)
    return float(((teacher - mean) ** 2 / (2 * sigma**2) + np.log(sigma)).mean())


SHAPES = [((3, 4, 4, 4), (3, 4, 4, 4)), ((2, 3, 2, 2), (2, 5, 4, 4)), ((1, 2, 5, 3), (1, 7, 5, 3))]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(
    ("loss", "reference"), [(attention_loss, at_reference), (selectivity_loss, nst_reference)], ids=["at", "nst"]
)
def test_value_and_gradient(loss: object, reference: object, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    agree(loss, reference, rng.normal(0, 2, shapes[0]), rng.normal(0, 3, shapes[1]))


def test_at_pools_a_student_s_larger_maps() -> None:
    rng = np.random.default_rng(0)
    agree(attention_loss, at_reference, rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 3, 2, 2)))


def test_vid_is_a_normal_likelihood() -> None:
    rng = np.random.default_rng(0)
    mean, teacher = rng.normal(0, 2, (2, 3, 4, 2, 2))
    variance = rng.uniform(0.1, 6, (4, 1, 1))
    agree(gaussian_loss, vid_reference, mean, variance, teacher)
    agree(lambda v, m, t: gaussian_loss(m, v, t), lambda v, m, t: vid_reference(m, v, t), variance, mean, teacher)


def test_vid_starts_with_a_variance_of_five() -> None:
    predictor = Predictor(3, 4)
    for weight in predictor.mean.parameters():
        torch.nn.init.zeros_(weight)
    teacher = torch.ones(2, 4, 3, 3)
    assert predictor(torch.ones(2, 3, 3, 3), teacher).item() == pytest.approx((1 / 5 + np.log(5)) / 2, rel=1e-5)


@pytest.mark.parametrize("loss", [attention_loss, selectivity_loss], ids=["at", "nst"])
def test_finite_at_the_edges(loss: object) -> None:
    some, other = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(some)
    for student in (some, zero, some.relu(), torch.ones_like(some)):
        for teacher in (other, zero):
            assert finite(loss, student, teacher) >= -1e-6
    dead = some.clone()
    dead[:, 1] = 0  # a channel that is off
    finite(loss, dead, other)
    finite(loss, some[:1], other[:1])
    finite(loss, (1e4 * some).bfloat16(), (1e-4 * other).bfloat16())


@pytest.mark.parametrize("loss", [attention_loss, selectivity_loss], ids=["at", "nst"])
def test_zero_for_equal_maps_and_invariant_to_order_scale_and_order_of_channels(loss: object) -> None:
    student, teacher = torch.randn(2, 4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    value = loss(student, teacher).item()
    assert loss(student, student).item() == pytest.approx(0, abs=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    assert loss(student[order], teacher[order]).item() == pytest.approx(value, rel=1e-4)
    assert loss(100 * student, teacher / 7).item() == pytest.approx(value, rel=1e-4)
    assert loss(student[:, [4, 0, 2, 1, 3]], teacher).item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 4), (3, 5), (4, 3), (7, 8)])
def test_pooling_is_torch_s_adaptive_pooling_with_its_gradient(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    again = maps.detach().clone().requires_grad_()
    ours, theirs = pool_to(maps, size), F.adaptive_avg_pool2d(again, size)
    assert torch.allclose(ours, theirs, atol=1e-6)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.allclose(maps.grad, again.grad, atol=1e-6)


def test_maps_are_pooled_to_the_smaller_size_of_each_side() -> None:
    ours, theirs = match_sizes(torch.zeros(1, 2, 8, 3), torch.zeros(1, 5, 4, 6))
    assert ours.shape == (1, 2, 4, 3) and theirs.shape == (1, 5, 4, 3)


def test_tokens_are_a_column_of_pixels() -> None:
    tokens = torch.randn(2, 5, 3)
    maps = as_maps(tokens)
    assert maps.shape[1:] == map_shape((5, 3)) == (3, 5, 1)
    assert torch.equal(maps[1, :, 4, 0], tokens[1, 4])


@pytest.mark.parametrize(
    ("ours", "theirs", "size"),
    [
        ((3, 4, 4), (5, 4, 4), (4, 4)),
        ((3, 8, 8), (5, 4, 4), (4, 4)),
        ((3, 4, 4), (5, 8, 8), (8, 8)),
        ((3, 4, 4), (5, 7, 7), (4, 4)),
        ((3, 5, 1), (6, 5, 1), (5, 1)),
    ],
)
def test_a_regressor_returns_the_teacher_s_channels_and_its_size_if_possible(
    ours: tuple[int, ...], theirs: tuple[int, ...], size: tuple[int, int]
) -> None:
    for active in (True, False):
        maps: Tensor = Regressor(ours, theirs, active)(torch.randn(3, *ours))
        assert maps.shape == (3, theirs[0], *size)
        assert bool((maps >= 0).all()) == active


@pytest.mark.parametrize("name", ["fitnet", "at", "nst", "vid"])
@pytest.mark.parametrize(
    ("teacher", "student"),
    [("wrn_16_2", "ShuffleV1"), ("vgg11", "MobileNetV2"), ("ResNet18", "vgg8"), ("resnet8x4", "ShuffleV2")],
)
def test_networks_of_different_kinds(name: str, teacher: str, student: str) -> None:
    """The pairs of the benchmark, with shallower teachers."""
    chosen, step = loss_between(name, student, teacher)
    terms = chosen(step)
    loss = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in chosen.parameters())


def test_fitnet_compares_the_chosen_level() -> None:
    chosen, step = loss_between("fitnet", "resnet8", "resnet14", level=3)
    assert (list(step.student.blocks), list(step.teacher.blocks)) == ([2], [5])
    guess = chosen.regressor(step.student.blocks[2])
    expected = 100 * (guess - step.teacher.blocks[5]).square().mean()
    assert chosen(step)["fitnet"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("teacher", "student", "theirs", "ours"),
    [
        ("resnet14", "resnet8", (32, 16, 16), (32, 16, 16)),
        ("vgg11", "vgg8", (256, 8, 8), (256, 8, 8)),
        ("vgg11", "MobileNetV2", (256, 8, 8), (16, 8, 8)),
        ("ResNet50", "vgg8", (512, 16, 16), (256, 8, 8)),
    ],
)
def test_fitnets_default_level_is_the_benchmarks(
    teacher: str, student: str, theirs: tuple[int, ...], ours: tuple[int, ...]
) -> None:
    """RepDistiller's train_student.py: hint_layer 2, which is f2 of models/*.py."""
    _, step = loss_between("fitnet", student, teacher)
    assert [maps.shape[1:] for maps in step.teacher.blocks.values()] == [theirs]
    assert [maps.shape[1:] for maps in step.student.blocks.values()] == [ours]


@pytest.mark.parametrize("name", ["at", "nst", "vid", "ab", "reviewkd"])
def test_vggs_are_compared_at_the_four_levels_of_the_benchmark(name: str) -> None:
    """RepDistiller's models/vgg.py: f1 to f4 are 128@16, 256@8, 512@4 and 512@4; helper/loops.py compares these."""
    _, step = loss_between(name, "vgg8", "vgg11")
    for features in (step.student, step.teacher):
        maps = features.blocks | features.preactivations
        assert [maps[i].shape[1:] for i in sorted(maps)] == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]


def test_a_missing_level_is_a_one_line_error(tmp_path: object) -> None:
    with pytest.raises(UserError, match=r"fitnet\.level is 4, but this pair has 3 levels"):
        make_training("fitnet", options={"fitnet": {"level": 4}})

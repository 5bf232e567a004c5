"""sp, cc, rkd and pkt against their formulas, with zero, equal and single images, and what leaves them unchanged."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from gradients import Array, agree, finite
from torch import Tensor

from iakd.distillation.losses.cc import congruence_loss
from iakd.distillation.losses.pkt import transfer_loss
from iakd.distillation.losses.rkd import angle_loss, differences, distance_loss
from iakd.distillation.losses.sp import similarity_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return distance_loss(differences(student), differences(teacher))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    return angle_loss(differences(student), differences(teacher))


def sp_reference(student: Array, teacher: Array) -> float:
    """Σ_ij (G_s − G_t)²_ij / B², each row of G divided by its length."""
    grams = []
    for features in (student, teacher):
        flat = features.reshape(len(features), -1)
        gram = np.array([[np.dot(a, b) for b in flat] for a in flat])
        grams.append(np.array([row / np.linalg.norm(row) for row in gram]))
    return float(((grams[0] - grams[1]) ** 2).sum() / len(student) ** 2)


def cc_reference(student: Array, teacher: Array) -> float:
    """(1/(B−1))·Σ_i Σ_d |s_i − t_i|_d·|s_(i+1) − t_(i+1)|_d."""
    delta = np.abs(student - teacher)
    return float(np.mean([np.dot(a, b) for a, b in pairwise(delta)]))


def smooth_l1(a: float, b: float) -> float:
    gap = abs(a - b)
    return gap**2 / 2 if gap < 1 else gap - 0.5


def rkd_distance_reference(student: Array, teacher: Array) -> float:
    """Mean over all i, j of L(d_s/μ_s, d_t/μ_t), d(i, j) = ‖x_i − x_j‖ and μ the mean d of different images."""
    n = len(student)
    relative = []
    for features in (student, teacher):
        d = np.array([[np.linalg.norm(a - b) for b in features] for a in features])
        relative.append(d / (d.sum() / (n * (n - 1))))
    return float(np.mean([smooth_l1(relative[0][i, j], relative[1][i, j]) for i in range(n) for j in range(n)]))


def rkd_angle_reference(student: Array, teacher: Array) -> float:
    """Mean over all i, j, k of L(cos_s, cos_t), the cosine between x_j − x_i and x_k − x_i; 0 where one is zero."""

    def cosine(features: Array, i: int, j: int, k: int) -> float:
        a, b = features[j] - features[i], features[k] - features[i]
        return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)) if i not in (j, k) else 0.0

    triples = np.ndindex(*[len(student)] * 3)
    return float(np.mean([smooth_l1(cosine(student, *t), cosine(teacher, *t)) for t in triples]))


def pkt_reference(student: Array, teacher: Array) -> float:
    """Mean over i, j of p_t·log((p_t + ε)/(p_s + ε)), p(j|i) = c_ij/Σ_j c_ij, c = (1 + cosine)/2, ε = 1e-7."""
    p = []
    for features in (student, teacher):
        c = np.array([[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in features] for a in features])
        c = (1 + c) / 2
        p.append(c / c.sum(1, keepdims=True))
    return float(np.mean(p[1] * np.log((p[1] + 1e-7) / (p[0] + 1e-7))))


CASES = {
    "sp": (similarity_loss, sp_reference),
    "cc": (congruence_loss, cc_reference),
    "rkd distance": (rkd_distance, rkd_distance_reference),
    "rkd angle": (rkd_angle, rkd_angle_reference),
    "pkt": (transfer_loss, pkt_reference),
}
LOSSES = [pytest.param(loss, id=name) for name, (loss, _) in CASES.items()]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("batch", "ours", "theirs"), [(2, 3, 3), (5, 4, 4), (9, 16, 16)])
def test_value_and_gradient(name: str, batch: int, ours: int, theirs: int) -> None:
    rng = np.random.default_rng(batch)
    student, teacher = rng.normal(1, 2, (batch, ours)), rng.normal(-1, 3, (batch, theirs))
    agree(*CASES[name], student, teacher)


def test_sp_takes_features_of_different_shapes() -> None:
    rng = np.random.default_rng(0)
    agree(similarity_loss, sp_reference, rng.normal(size=(4, 3, 2, 2)), rng.normal(size=(4, 5, 4, 4)))


@pytest.mark.parametrize("name", ["rkd distance", "rkd angle", "pkt"])
def test_lengths_of_features_may_differ(name: str) -> None:
    rng = np.random.default_rng(0)
    agree(*CASES[name], rng.normal(size=(5, 3)), rng.normal(size=(5, 7)))


@pytest.mark.parametrize("loss", LOSSES)
def test_finite_at_the_edges(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    some, other = torch.randn(2, 4, 6, generator=generator)
    zero, equal = torch.zeros(4, 6), torch.ones(4, 6)
    for student in (some, zero, equal):
        for teacher in (other, zero, equal):
            assert finite(loss, student, teacher) >= -1e-6
    partly = some.clone()
    partly[1] = partly[2]
    partly[3] = 0
    finite(loss, partly, other)
    assert finite(loss, some[:1], other[:1]) == pytest.approx(0, abs=1e-6)
    finite(loss, (1e4 * some).bfloat16(), (1e-4 * other).bfloat16())


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_for_equal_features(loss: Loss) -> None:
    some = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert loss(some, some).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in CASES if name != "cc"])  # cc compares neighbours in the batch
def test_the_order_of_images_does_not_matter(name: str) -> None:
    loss, generator = CASES[name][0], torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 5, generator=generator)
    order = torch.randperm(7, generator=generator)
    assert loss(student[order], teacher[order]).item() == pytest.approx(loss(student, teacher).item(), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name != "cc"])
def test_scale_does_not_matter(name: str) -> None:
    loss = CASES[name][0]
    student, teacher = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    assert loss(1000 * student, teacher / 50).item() == pytest.approx(loss(student, teacher).item(), rel=1e-4)


def test_rkd_ignores_a_shift() -> None:
    student, teacher = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    for loss in (rkd_distance, rkd_angle):
        assert loss(student + 3, teacher).item() == pytest.approx(loss(student, teacher).item(), rel=1e-4)


def test_rkd_counts_images_with_equal_features_in_the_mean_distance() -> None:
    """RepDistiller's distiller_zoo/RKD.py and the authors' metric/utils.py clamp their squared distance to 1e-12, so
    that the mean of all distances above 0 is over all pairs: √2 divided by (0 + √2 + √2)/3 is 1.5.
    """
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])  # all at distance 1, relative distance 1
    gaps = [smooth_l1(0, 1), smooth_l1(1.5, 1), smooth_l1(1.5, 1)]
    assert rkd_distance(student, teacher).item() == pytest.approx(2 * sum(gaps) / 9, rel=1e-6)
    rng = np.random.default_rng(0)
    some, other = rng.normal(size=(2, 6, 4))
    some[4] = some[1]
    agree(rkd_distance, rkd_distance_reference, other, some)

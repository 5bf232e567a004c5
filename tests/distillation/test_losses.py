"""Losses against float64 references written from their formulas."""

import numpy as np
import pytest
import torch
from references import kd, softmax

from iakd.data.loader import MixedLabels
from iakd.distillation.loss import cross_entropy
from iakd.distillation.losses.kd import kd_divergence


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("t", [1.0, 4.0, 20.0])
def test_kd_divergence(batch: int, classes: int, t: float) -> None:
    rng = np.random.default_rng(batch * classes)
    student, teacher = rng.normal(0, 3, (2, batch, classes))
    value = kd_divergence(torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32), t)
    assert value.item() == pytest.approx(kd(student, teacher, np.zeros(batch, np.int64), t), rel=1e-4, abs=1e-6)


def test_kd_gradient() -> None:
    """d/ds = T·(q − p)/B, from the formula."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, 5, 10))
    logits = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    kd_divergence(logits, torch.tensor(teacher, dtype=torch.float32), 4.0).backward()
    assert logits.grad is not None
    assert logits.grad.numpy() == pytest.approx(4.0 * (softmax(student / 4) - softmax(teacher / 4)) / 5, abs=1e-6)


def test_kd_is_zero_for_equal_outputs_and_ignores_a_shift() -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert kd_divergence(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert kd_divergence(logits, logits + 50, 4.0).item() == pytest.approx(0, abs=1e-4)


def test_kd_of_confident_opposites_is_finite_and_float32() -> None:
    student, teacher = torch.tensor([[300.0, -300.0]]).bfloat16(), torch.tensor([[-300.0, 300.0]]).bfloat16()
    value = kd_divergence(student, teacher, 1.0)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(600, rel=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(0, 2, (6, 10)), rng.integers(0, 10, 6)
    target = np.full((6, 10), smoothing / 10)
    target[np.arange(6), labels] += 1 - smoothing
    expected = -np.mean(np.sum(target * np.log(softmax(logits)), axis=1))
    value = cross_entropy(torch.tensor(logits).bfloat16().float(), torch.tensor(labels), smoothing)
    assert value.item() == pytest.approx(expected, rel=1e-2)
    value = cross_entropy(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels), smoothing)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_images_is_that_of_their_mixed_labels(smoothing: float) -> None:
    rng = np.random.default_rng(2)
    logits, labels, other, share = rng.normal(0, 2, (6, 10)), *rng.integers(0, 10, (2, 6)), rng.uniform(0, 1, 6)
    target = np.full((6, 10), smoothing / 10)
    target[np.arange(6), labels] += (1 - smoothing) * share
    target[np.arange(6), other] += (1 - smoothing) * (1 - share)
    expected = -np.mean(np.sum(target * np.log(softmax(logits)), axis=1))
    value = cross_entropy(
        *map(torch.tensor, (logits, labels)), smoothing, MixedLabels(torch.tensor(other), torch.tensor(share))
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)

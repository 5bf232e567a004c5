"""Losses between outputs against float64 references written from their formulas."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from digit_training import fixed_batch, make_training
from pydantic import ValidationError
from references import (
    Array,
    Labels,
    gram_of_classes,
    gram_of_images,
    kd,
    other_classes,
    over_classes,
    over_images,
    softmax,
    standardised_kd,
    target_class,
)
from torch import Tensor

from iakd import config
from iakd.distillation.losses.ctkd import scale_gradient
from iakd.distillation.losses.dist import relations
from iakd.distillation.losses.dkd import decoupled
from iakd.distillation.losses.kd import kd_divergence
from iakd.distillation.losses.lskd import standardised
from iakd.distillation.losses.mlkd import gram_distances


@dataclass(frozen=True)
class Loss:
    """`ours` float32 of logits, labels and T, and the `reference` that it has to equal."""

    ours: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    reference: Callable[[Array, Array, Labels, float], float]


LOSSES = {
    "kd": Loss(lambda s, t, y, T: kd_divergence(s, t, T), kd),
    "dkd, target class": Loss(lambda s, t, y, T: decoupled(s, t, y, T)[0], target_class),
    "dkd, other classes": Loss(lambda s, t, y, T: decoupled(s, t, y, T)[1], other_classes),
    "dist, over classes": Loss(lambda s, t, y, T: relations(s, t, T)[0], over_classes),
    "dist, over images": Loss(lambda s, t, y, T: relations(s, t, T)[1], over_images),
    "mlkd, images": Loss(lambda s, t, y, T: gram_distances(s, t, T)[0], gram_of_images),
    "mlkd, classes": Loss(lambda s, t, y, T: gram_distances(s, t, T)[1], gram_of_classes),
    "lskd": Loss(lambda s, t, y, T: kd_divergence(standardised(s), standardised(t), T), standardised_kd),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def drawn(batch: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[Array, Array, Labels]:
    rng = np.random.default_rng((batch, classes, seed))
    student, teacher = rng.normal(0, scale, (2, batch, classes))
    return student, teacher, rng.integers(0, classes, batch)


def tensors(student: Array, teacher: Array, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(student).float(), torch.tensor(teacher).float(), torch.tensor(labels)


@every_loss
@pytest.mark.parametrize("batch", [1, 2, 7, 32])
@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_values(loss: Loss, batch: int, classes: int, t: float) -> None:
    student, teacher, labels = drawn(batch, classes)
    value = loss.ours(*tensors(student, teacher, labels), t)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss.reference(student, teacher, labels, t), rel=2e-3, abs=2e-5)


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_gradients(loss: Loss, seed: int) -> None:
    """Along random directions, against the reference's central differences."""
    student, teacher, labels = drawn(6, 10, seed, scale=1.5)
    ours, theirs, y = tensors(student, teacher, labels)
    ours.requires_grad_()
    loss.ours(ours, theirs, y, 2.0).backward()
    assert ours.grad is not None
    for direction in np.random.default_rng(seed).normal(size=(3, 6, 10)):
        up, down = (loss.reference(student + h * direction, teacher, labels, 2.0) for h in (1e-5, -1e-5))
        slope = float((ours.grad * torch.tensor(direction)).sum())
        assert slope == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-4)


@every_loss
def test_zero_where_the_student_is_the_teacher(loss: Loss) -> None:
    student, teacher, labels = drawn(8, 10)
    assert loss.ours(*tensors(teacher, teacher, labels), 4.0).item() == pytest.approx(0, abs=1e-4)
    assert loss.ours(*tensors(student, teacher, labels), 4.0).item() > 1e-3


@every_loss
def test_neither_the_order_of_images_nor_a_shift_of_logits_matters(loss: Loss) -> None:
    student, teacher, labels = drawn(8, 10)
    expected = loss.ours(*tensors(student, teacher, labels), 4.0).item()
    order = np.random.default_rng(1).permutation(8)
    value = loss.ours(*tensors(student[order], teacher[order], labels[order]), 4.0).item()
    assert value == pytest.approx(expected, rel=1e-4)
    shifts = np.random.default_rng(2).normal(0, 5, (8, 1))
    value = loss.ours(*tensors(student + shifts, teacher - shifts, labels), 4.0).item()
    assert value == pytest.approx(expected, rel=1e-3)


@every_loss
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("classes", [2, 10])
def test_extremes_are_finite(loss: Loss, batch: int, classes: int) -> None:
    """Opposite certainties, equal logits, and one class only, in bfloat16."""
    certain = torch.full((batch, classes), -3e4)
    certain[:, 0] = 3e4
    labels = torch.zeros(batch, dtype=torch.int64)
    for student, teacher in ((-certain, certain), (certain, -certain), (certain, certain), (0 * certain, 0 * certain)):
        ours = student.bfloat16().requires_grad_()
        value = loss.ours(ours, teacher.bfloat16(), labels, 1.0)
        value.backward()
        assert value.dtype == torch.float32 and torch.isfinite(value)
        assert ours.grad is not None and torch.isfinite(ours.grad).all()


def test_kd_is_its_two_decoupled_parts() -> None:
    """KL = TCKD + (1 − p_t)·NCKD, image by image (Zhao et al. 2022)."""
    student, teacher, labels = drawn(1, 10)
    first, second = decoupled(*tensors(student, teacher, labels), 4.0)
    p = softmax(teacher / 4)[0, labels[0]]
    assert first.item() + (1 - p) * second.item() == pytest.approx(kd(student, teacher, labels, 4.0), rel=1e-4)


def test_standardised_logits_have_mean_0_and_deviation_1_whatever_their_scale() -> None:
    logits = torch.tensor(drawn(5, 10)[0])
    seen = standardised(logits)
    assert seen.dtype == torch.float32
    assert torch.allclose(seen.mean(1), torch.zeros(5), atol=1e-6)
    assert torch.allclose(seen.std(1), torch.ones(5), atol=1e-5)
    assert torch.allclose(standardised(100 * logits + 7), seen, atol=1e-4)


def test_dkd_is_warmed_up_by_epochs() -> None:
    training = make_training("dkd", options={"dkd": {"warmup_epochs": 4}})
    method, batch = training.objective.train() or training.objective, fixed_batch(training)
    steps = training.timeline.steps_per_epoch
    weighted = [method(batch, epoch * steps)[0]["dkd_others"].item() for epoch in range(5)]
    assert weighted == pytest.approx([weighted[-1] * share for share in (0.25, 0.5, 0.75, 1, 1)], rel=1e-4)
    at_once = make_training("dkd", options={"dkd": {"warmup_epochs": 0}}).objective
    at_once.train()
    assert at_once(batch, 0)[0]["dkd_others"].item() == pytest.approx(weighted[-1], rel=1e-4)


def test_ctkd_ascends_the_loss_that_the_student_descends() -> None:
    """θ's gradient is reversed, and grows by half a cosine; the student's is what kd would give at that temperature."""
    training = make_training("ctkd", options={"ctkd": {"epochs": 4}})
    part, method, batch = next(iter(training.objective.losses.values())), training.objective, fixed_batch(training)
    temperature = 1 + 20 / (1 + np.exp(-1.0))
    assert part.temperature.item() == pytest.approx(temperature)
    factors = [part.factor(epoch) for epoch in range(6)]
    assert factors == pytest.approx([-(1 - np.cos(np.pi * min(e, 4) / 4)) / 2 for e in range(1, 7)])
    method.train()
    gradients = []
    for epoch in (1, 5):
        part.theta.grad = None
        terms, _ = method(batch, epoch * training.timeline.steps_per_epoch)
        terms["ctkd"].backward()
        gradients.append(part.theta.grad.item())
    with torch.no_grad():
        logits = [network(batch.images).double().numpy() for network in (training.objective.student, method.teacher)]
    up, down = (kd(*logits, batch.labels.numpy(), 1 + 20 / (1 + np.exp(-1 - h))) for h in (1e-5, -1e-5))
    slope = 0.9 * (up - down) / 2e-5
    assert gradients == pytest.approx([-0.5 * slope, -slope], rel=1e-3)
    assert terms["ctkd"].item() == pytest.approx(0.9 * kd(*logits, batch.labels.numpy(), temperature), rel=1e-4)


def test_scale_gradient() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    y = scale_gradient(x, -0.5)
    assert y.item() == 3
    (y**2).backward()
    assert x.grad is not None and x.grad.item() == -3


@pytest.mark.parametrize("other", ["kd", "dkd", "dist", "ctkd"])
def test_standardize_changes_every_loss_between_outputs(other: str) -> None:
    """Without training they agree with the same loss of standardised logits; the cross-entropy stays as it was."""
    plain, changed = make_training(other), make_training(f"{other}+standardize")
    batch = fixed_batch(plain)
    for training in (plain, changed):
        training.objective.train()
    step = plain.timeline.total - 1
    part, steps = next(iter(plain.objective.losses.values())), []
    plain_terms = part.forward
    part.forward = lambda seen: steps.append(seen) or plain_terms(seen)
    before, after = plain.objective(batch, step)[0], changed.objective(batch, step)[0]
    assert before["ce"].item() == after["ce"].item()
    assert all(before[term].item() != after[term].item() for term in before if term != "ce")
    ours, theirs = standardised(steps[0].student_logits), standardised(steps[0].teacher_logits)
    features = replace(steps[0].student, logits=ours), replace(steps[0].teacher, logits=theirs)
    expected = plain_terms(replace(steps[0], student=features[0], teacher=features[1]))
    assert set(after) == {"ce", *expected}
    assert {k: after[k].item() for k in expected} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_lskd_is_standardised_kd() -> None:
    options = {"temperature": 2.0, "ce_weight": 0.1, "kd_weight": 9.0}
    one, other = make_training("lskd"), make_training("kd+standardize", options={"kd": options})
    batch = fixed_batch(one)
    one.objective.train(), other.objective.train()
    assert one.objective(batch, 0)[0]["lskd"].item() == other.objective(batch, 0)[0]["kd"].item()


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("standardize", "standardize changes other methods; add one of kd, dkd, dist"),
        ("iakd+standardize", "standardize changes other methods; add one of kd"),
        ("label_smoothing+standardize", "add one of kd"),
        ("simkd+ctkd", "simkd cannot be added to ctkd: its outputs are the teacher's classifier's"),
        ("lskd+standardize", "standardize cannot be added to lskd: its logits are standardised already"),
    ],
)
def test_impossible_sums_say_why(expression: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config.Method(method=expression)


@pytest.mark.parametrize(
    "expression", ["iakd+dkd", "dkd+standardize", "iakd+dist+standardize", "kd+lskd+ctkd+dkd+dist+mlkd+mutual"]
)
def test_sums_add_up_all_their_terms(expression: str) -> None:
    training = make_training(expression)
    training.objective.train()
    terms, _ = training.objective(fixed_batch(training), 0)
    for name in set(expression.split("+")) - {"iakd", "standardize"}:
        assert any(term.split("_")[0] == name for term in terms)

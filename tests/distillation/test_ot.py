"""The Sinkhorn divergence against float64 references and exact transport, and the method that uses it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from digit_training import fixed_batch, loss_between
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog
from scipy.special import logsumexp

from iakd import config, models
from iakd.config import Recipe
from iakd.data.loader import DeviceLoader
from iakd.distillation.loss import ForwardOutputs, LossContext
from iakd.distillation.losses.ot import OTLoss, sinkhorn_divergence, vectors
from iakd.errors import UserError
from iakd.models.features import POOLED, Features, forward_features
from iakd.training.timeline import Timeline
from iakd.training.trainer import Trainer

Floats = NDArray[np.float64]


def costs(x: Floats, y: Floats) -> Floats:
    return 0.5 * ((x[:, None] - y[None]) ** 2).sum(2)


def experiment(c: Floats, epsilon: float) -> tuple[Floats, float]:
    """Plan and cost of entropic transport between uniform weights: Sinkhorn's updates by turns until nothing moves."""
    n, m = c.shape
    f, g = np.zeros(n), np.zeros(m)
    for _ in range(5000):
        f = -epsilon * (logsumexp((g[None] - c) / epsilon, axis=1) - np.log(m))
        before, g = g, -epsilon * (logsumexp((f[:, None] - c) / epsilon, axis=0) - np.log(n))
        if np.abs(g - before).max() < 1e-9:
            break
    pi = np.exp((f[:, None] + g[None] - c) / epsilon) / (n * m)
    return pi, float((pi * c).sum() + epsilon * (pi * np.log(pi * n * m)).sum())


def reference(x: Floats, y: Floats, blur: float) -> tuple[float, Floats]:
    """The divergence of two sets and its gradient by x: each point is drawn to where its mass goes."""
    (across, value), (within, own), (_, other) = (
        experiment(costs(*pair), blur**2) for pair in ((x, y), (x, x), (y, y))
    )
    gradient = (across.sum(1, keepdims=True) * x - across @ y) - (within.sum(1, keepdims=True) * x - within @ x)
    return value - own / 2 - other / 2, gradient


@pytest.mark.parametrize(("n", "m", "dim", "blur"), [(5, 5, 2, 0.5), (9, 4, 3, 0.5), (1, 6, 4, 1.0), (1, 1, 2, 0.05)])
def test_value_and_gradient(n: int, m: int, dim: int, blur: float) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(2, n, dim)), rng.normal(0.5, 1, size=(2, m, dim))
    points = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    other = torch.tensor(y, dtype=torch.float32, requires_grad=True)
    values = sinkhorn_divergence(points, other, blur, updates=2000)
    values.sum().backward()
    assert points.grad is not None and other.grad is not None
    for i in range(2):
        value, gradient = reference(x[i], y[i], blur)
        assert values[i].item() == pytest.approx(value, rel=2e-3, abs=1e-5)
        assert points.grad[i].numpy() == pytest.approx(gradient, abs=2e-3)
        assert other.grad[i].numpy() == pytest.approx(reference(y[i], x[i], blur)[1], abs=2e-3)


@pytest.mark.parametrize("size", [(8, 8), (6, 4)])
def test_small_blur_is_exact_transport(size: tuple[int, int]) -> None:
    n, m = size
    rng = np.random.default_rng(1)
    x, y = rng.random((n, 3)), rng.random((m, 3))
    c = costs(x, y)
    if n == m:
        exact = c[linear_sum_assignment(c)].mean()
    else:
        rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
        weights = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
        exact = linprog(c.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=weights).fun
    value = sinkhorn_divergence(*(torch.tensor(p, dtype=torch.float32)[None] for p in (x, y)), 0.01, updates=2000)
    assert value.item() == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(("n", "dim", "scale"), [(16, 8, 0.1), (64, 64, 1.0), (16, 256, 30.0)])
def test_the_default_number_of_updates_nearly_converges(n: int, dim: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(n)
    x, y = (scale * torch.randn(4, n, dim, generator=generator).relu() for _ in range(2))
    value, converged = (sinkhorn_divergence(x, y, 0.05, *updates) for updates in ((), (500,)))
    assert torch.allclose(value, converged, rtol=0.03)


def test_invariants() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 12, 5, generator=generator), torch.randn(6, 9, 5, generator=generator)
    value = sinkhorn_divergence(x, y, 0.05)
    assert (value > 0).all()
    near = sinkhorn_divergence(x, x + 0.01 * torch.randn(x.shape, generator=generator), 0.05)
    assert (near >= 0).all() and (near < 1e-2).all()
    assert sinkhorn_divergence(x, x, 0.05).abs().max() < 1e-6
    assert sinkhorn_divergence(x, x[:, torch.randperm(12, generator=generator)], 0.05).abs().max() < 1e-5
    assert torch.allclose(sinkhorn_divergence(y, x, 0.05), value, rtol=1e-4)
    assert torch.allclose(sinkhorn_divergence(x + 7, y + 7, 0.05), value, rtol=1e-3)
    assert torch.allclose(sinkhorn_divergence(3 * x, 3 * y, 0.15), 9 * value, rtol=1e-3)
    order = torch.tensor([2, 0, 5, 1, 3, 4])
    assert torch.allclose(sinkhorn_divergence(x[order], y[order], 0.05), value[order], rtol=1e-5)
    shift = torch.tensor([1.0, 0, 0, 0, 0])
    assert sinkhorn_divergence(x, x + shift, 1.0) == pytest.approx(0.5, rel=0.02)  # a translation by v costs |v|²/2


def test_huge_bf16_features_are_finite_in_float32() -> None:
    x, y = (1e4 * torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    x.requires_grad_()
    value = sinkhorn_divergence(x, y, 0.05)
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all() and (value > 0).all()
    assert x.grad is not None and x.grad.isfinite().all()


def test_vectors() -> None:
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert vectors(maps).shape == (1, 12, 2)
    assert vectors(maps)[0, 5].tolist() == maps[0, :, 1, 1].tolist()
    tokens = torch.zeros(2, 5, 7, dtype=torch.bfloat16)
    assert vectors(tokens).shape == (2, 5, 7) and vectors(tokens).dtype == torch.float32


def test_equal_features_have_no_loss(make_training: Callable[..., Trainer]) -> None:
    """Features equal to the teacher's, that is."""
    training = make_training("ot")
    batch = fixed_batch(training)
    (part,) = training.objective.losses.values()
    assert isinstance(part.project, torch.nn.Identity)
    seen = training.objective(batch, 0)[0]["ot"]
    assert seen > 0
    mapped = torch.randn(len(batch.labels), 16, 4, 4)
    step = type("Seen", (), {})()
    step.student = step.teacher = type(
        "Features", (), {"blocks": {part.student_block: mapped, part.teacher_block: mapped}}
    )()
    assert part(step)["ot"].item() == pytest.approx(0, abs=1e-5)


def test_a_batch_is_one_set_of_pooled_features(make_training: Callable[..., Trainer]) -> None:
    """Value and gradient of the term, for the features of both networks; which image has which does not matter."""
    training = make_training("ot", options={"ot": {"sets": "images", "blur": 2.0, "weight": 3.0}})
    objective, batch = training.objective.train(), fixed_batch(training)
    (part,) = objective.losses.values()
    assert isinstance(part, OTLoss) and part.cross_sample
    with torch.no_grad():
        found = objective(batch, 0)[0]["ot"].item()
        student, teacher = (
            forward_features(net, batch.images, POOLED).pooled for net in (objective.student, objective.teacher)
        )
    assert student is not None and teacher is not None and student.shape == teacher.shape == (32, 32)
    value, gradient = reference(student.double().numpy(), teacher.double().numpy(), 2.0)
    assert found == pytest.approx(3 * value, rel=2e-2)
    points = student.clone().requires_grad_()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for theirs in (teacher, teacher[order]):
        points.grad = None
        term = part(ForwardOutputs(0, batch, Features(pooled=points), Features(pooled=theirs)))["ot"]
        term.backward()
        assert term.item() == pytest.approx(found, rel=1e-4)
        assert points.grad is not None
        ours, exact = points.grad.double().numpy().ravel(), 3 * gradient.ravel()
        assert np.dot(ours, exact) > 0.99 * np.linalg.norm(ours) * np.linalg.norm(exact)


def test_pooled_features_of_other_lengths_are_projected() -> None:
    part, outputs = loss_between("ot", "resnet8x4", "wrn_16_2", sets="images")
    assert isinstance(part.project, torch.nn.Linear)
    assert part.project.weight.shape == (128, 256)
    part(outputs)["ot"].backward()
    assert part.project.weight.grad is not None and part.project.weight.grad.abs().sum() > 0
    same, _ = loss_between("ot", "resnet8", "resnet14", sets="images")
    assert isinstance(same.project, torch.nn.Identity)


def setting(teacher: str, student: str, side: int) -> LossContext:
    data = DeviceLoader(np.zeros((4, 3, side, side), np.uint8), np.arange(4), [0.5] * 3, [0.5] * 3, "cpu")
    ours, theirs = (models.build(config.Network(arch=arch), 3, 4) for arch in (student, teacher))
    return LossContext(config.Method(method="ot").options("ot"), ours, theirs, data, Timeline.of(Recipe(), 1), 0)


def test_other_widths_and_sizes() -> None:
    part = OTLoss(setting("ResNet18", "vgg8", 32))
    assert isinstance(part.project, torch.nn.Identity)
    part = OTLoss(setting("resnet8x4", "resnet8", 16))
    assert isinstance(part.project, torch.nn.Linear) and tuple(part.project.weight.shape) == (256, 64)
    step = type("Seen", (), {})()
    step.student = type("Features", (), {"blocks": {part.student_block: torch.randn(2, 64, 4, 4)}})()
    step.teacher = type("Features", (), {"blocks": {part.teacher_block: torch.randn(2, 256, 3, 3)}})()
    part(step)["ot"].backward()
    assert part.project.weight.grad is not None and part.project.weight.grad.abs().sum() > 0


def test_maps_and_tokens_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="the student's blocks return maps and the teacher's tokens"):
        OTLoss(setting("torchvision/vit_b_32", "torchvision/resnet18", 224))

"""Knowledge review: its loss and its fusion against the formulas, the pairs that it takes, and its warm-up."""

import numpy as np
import pytest
import torch
from digit_training import fixed_batch, loss_between, make_training
from gradients import Array, agree, finite

from iakd.distillation.losses.reviewkd import Fusion, context_loss


def block_means(maps: Array, side: int) -> Array:
    """Means over side×side equal windows of square maps."""
    b, c, h, _ = maps.shape
    step = h // side
    return maps.reshape(b, c, side, step, side, step).mean((3, 5))


def context_reference(student: Array, teacher: Array) -> float:
    """(MSE + MSE₄/2 + MSE₂/4 + MSE₁/8)/(1 + 1/2 + 1/4 + 1/8), without sizes that are not smaller than the maps."""
    sides = [student.shape[2], *(side for side in (4, 2, 1) if side < student.shape[2])]
    losses = [((block_means(student, side) - block_means(teacher, side)) ** 2).mean() for side in sides]
    weights = [0.5**i for i in range(len(losses))]
    return float(np.dot(losses, weights) / sum(weights))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_value_and_gradient(side: int) -> None:
    rng = np.random.default_rng(side)
    agree(context_loss, context_reference, *rng.normal(0, 2, (2, 3, 4, side, side)))


def test_edges() -> None:
    some, other = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert context_loss(some, some) == 0
    assert context_loss(2 * some, 2 * other).item() == pytest.approx(4 * context_loss(some, other).item(), rel=1e-4)
    finite(context_loss, torch.zeros_like(some), other)
    finite(context_loss, some[:1, :, :5, :3], other[:1, :, :5, :3])


def normalised(maps: Array) -> Array:
    """By a fresh normalisation layer in evaluation mode."""
    return maps / np.sqrt(1 + 1e-5)


def repeated(maps: Array, side: int) -> Array:
    step = side // maps.shape[2]
    return maps.repeat(step, axis=2).repeat(step, axis=3)


@torch.no_grad()
def test_fusion() -> None:
    """x′ = BN(W₁x), (w₁, w₂) = σ(A[x′; y]), h = w₁x′ + w₂y at the teacher's size; y is the next level's h."""
    fusion = Fusion((3, 4, 4), (5, 8, 8), 6, last=False).double().eval()
    maps, later = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 6, 2, 2).double()
    result, fused = fusion(maps, later)
    narrow, mixer = fusion.narrow[0].weight[:, :, 0, 0].numpy(), fusion.attention[0]
    x = normalised(np.einsum("oc,bchw->bohw", narrow, maps.numpy()))
    y = repeated(later.numpy(), 4)
    both = np.concatenate([x, y], axis=1)
    logits = np.einsum("oc,bchw->bohw", mixer.weight[:, :, 0, 0].numpy(), both) + mixer.bias.numpy()[:, None, None]
    weights = 1 / (1 + np.exp(-logits))
    expected = repeated(x * weights[:, :1] + y * weights[:, 1:], 8)
    assert fused.numpy() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(result, fusion.widen(fused)) and result.shape == (2, 5, 8, 8)


@torch.no_grad()
def test_the_last_level_has_one_input() -> None:
    fusion = Fusion((3, 1, 1), (5, 1, 1), 6, last=True).eval()
    assert fusion.attention is None
    result, fused = fusion(torch.randn(2, 3, 1, 1), None)
    assert result.shape == (2, 5, 1, 1) and fused.shape == (2, 6, 1, 1)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("resnet14", "resnet8"),
        ("wrn_16_2", "ShuffleV1"),
        ("wrn_16_2", "wrn_16_1"),
        ("vgg11", "MobileNetV2"),
        ("ResNet18", "vgg8"),
        ("resnet8x4", "ShuffleV2"),
    ],
)
def test_networks_of_different_kinds(teacher: str, student: str) -> None:
    part, step = loss_between("reviewkd", student, teacher, warmup_epochs=0)
    loss = part(step)["reviewkd"]
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in part.parameters())


def test_results_have_the_teacher_s_shapes_and_at_most_512_channels_are_fused() -> None:
    part, step = loss_between("reviewkd", "MobileNetV2", "vgg11")
    student = [step.student.blocks[ours] for ours, _ in part.block_positions] + [step.student.pooled[:, :, None, None]]
    shapes = [tuple(maps.shape[1:]) for maps in part.fused(student)]
    taught = [step.teacher.preactivations[theirs] for _, theirs in part.block_positions]
    assert shapes == [*(tuple(maps.shape[1:]) for maps in taught), (512, 1, 1)]
    assert {fusion.narrow[0].out_channels for fusion in part.fusions} == {512}


def test_the_first_level_learns_from_the_last_one_s_features() -> None:
    """What makes it a review: the pooled vector of the student moves what the first level is compared with."""
    part, step = loss_between("reviewkd", "resnet8", "resnet14")
    student = [step.student.blocks[ours].detach() for ours, _ in part.block_positions]
    pooled = step.student.pooled.detach()[:, :, None, None].requires_grad_()
    part.fused([*student, pooled])[0].square().sum().backward()
    assert pooled.grad.abs().sum() > 0


def test_the_weight_grows_over_the_first_epochs() -> None:
    training = make_training("reviewkd", options={"reviewkd": {"warmup_epochs": 4, "weight": 3.0}})
    training.objective.teacher.eval()
    per_epoch = training.timeline.steps_per_epoch
    batch = fixed_batch(training)
    terms = [training.objective(batch, epoch * per_epoch)[0]["reviewkd"].item() for epoch in (0, 1, 2, 4, 4)]
    assert terms[0] == 0
    assert terms == pytest.approx([share * terms[-1] for share in (0, 0.25, 0.5, 1, 1)], rel=1e-3)

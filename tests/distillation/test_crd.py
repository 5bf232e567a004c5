"""Contrastive representation distillation against references written from its formula."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from digit_training import fixed_batch
from numpy.typing import NDArray

from iakd.distillation.losses.crd import EPSILON, Negatives, contrast, update_bank
from iakd.errors import UserError
from iakd.training.trainer import Trainer


def reference(
    anchors: torch.Tensor, bank: torch.Tensor, chosen: torch.Tensor, z: float, temperature: float
) -> torch.Tensor:
    """The loss, image by image and negative by negative, in float64; differentiable."""
    n, total = len(bank), torch.zeros((), dtype=torch.float64)
    c = (chosen.shape[1] - 1) / n
    for anchor, row in zip(anchors, chosen, strict=True):
        x = torch.exp(bank[row] @ anchor / temperature) / z
        total = total + torch.log(x[0] / (x[0] + c + EPSILON)) + torch.log(c / (x[1:] + c + EPSILON)).sum()
    return -total / len(anchors)


@pytest.mark.parametrize(("batch", "n", "k", "dim"), [(1, 5, 3, 4), (6, 40, 17, 8), (3, 20, 100, 16)])
def test_loss_gradient_and_constant(batch: int, n: int, k: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(n)
    anchors, bank = (
        torch.nn.functional.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator), dim=1)
        for rows in (batch, n)
    )
    chosen = torch.randint(n, (batch, 1 + k), generator=generator)  # with repetitions
    z = n * torch.exp(torch.einsum("bd,bkd->bk", anchors, bank[chosen]) / 0.07).mean().item()
    expected_anchors = anchors.clone().requires_grad_()
    expected = reference(expected_anchors, bank, chosen, z, 0.07)
    expected.backward()
    ours, constant, memory = anchors.float().requires_grad_(), torch.zeros(()), bank.float()
    loss = contrast(ours, memory, chosen, constant, 0.07)
    memory.zero_()  # the bank may change before the backward pass
    (3 * loss).backward()
    assert constant.item() == pytest.approx(z, rel=1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert ours.grad is not None and expected_anchors.grad is not None
    scale = expected_anchors.grad.abs().max().item()
    assert ours.grad.numpy() == pytest.approx(3 * expected_anchors.grad.numpy(), abs=1e-4 * scale)
    before = constant.clone()
    contrast(ours, bank.float().flip(0), chosen, constant, 0.07)
    assert torch.equal(constant, before)  # fixed by the first batch


def test_the_loss_does_not_depend_on_the_order_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, bank = torch.randn(5, 8, generator=generator), torch.randn(30, 8, generator=generator)
    chosen, order = torch.randint(30, (5, 12), generator=generator), torch.tensor([3, 1, 4, 0, 2])
    value = contrast(anchors, bank, chosen, torch.tensor(50.0), 0.5)
    assert contrast(anchors[order], bank, chosen[order], torch.tensor(50.0), 0.5).item() == pytest.approx(value.item())


def test_the_best_fit_is_finite() -> None:
    bank = torch.eye(4)
    chosen = torch.tensor([[0, 1, 2]])
    value = contrast(bank[:1], bank, chosen, torch.zeros(()), 0.07)
    assert value.isfinite() and 0 < value.item() < 1.5


def test_memories_move_half_way_and_stay_of_length_1() -> None:
    rng = np.random.default_rng(0)
    bank, new = rng.normal(size=(9, 5)), rng.normal(size=(3, 5))
    ours = torch.tensor(bank)
    update_bank(ours, torch.tensor([7, 0, 4]), torch.tensor(new), 0.5)
    expected = bank.copy()
    for row, value in zip((7, 0, 4), new, strict=True):
        moved = 0.5 * bank[row] + 0.5 * value
        expected[row] = moved / np.linalg.norm(moved)
    assert ours.numpy() == pytest.approx(expected)


def counted(drawn: torch.Tensor, n: int) -> NDArray[np.int64]:
    return np.stack([np.bincount(row, minlength=n) for row in drawn.numpy()])


@pytest.mark.parametrize(("count", "replacement"), [(20, False), (21, True), (400, True)])
def test_negatives_are_of_other_classes_and_uniform(count: int, replacement: bool) -> None:
    labels = torch.tensor([0] * 10 + [2] * 10 + [3] * 15)  # the largest class leaves twenty images; there is no 1
    labels = labels[torch.randperm(35, generator=torch.Generator().manual_seed(1))]
    negatives = Negatives(labels, count)
    assert negatives.replacement is replacement
    images = torch.arange(35).repeat(60)
    drawn = negatives.draw(images, torch.Generator().manual_seed(0))
    assert drawn.shape == (len(images), count)
    assert not (labels[drawn] == labels[images][:, None]).any()
    counts = counted(drawn, 35)
    if not replacement:
        assert counts.max() == 1
    for label in (0, 2, 3):
        rows = counts[(labels[images] == label).numpy()].sum(0)[(labels != label).numpy()]
        expected = rows.sum() / len(rows)
        assert np.abs(rows - expected).max() < 5 * expected**0.5


def test_negatives_are_a_function_of_the_seed() -> None:
    negatives = Negatives(torch.arange(50) % 5, 8)
    draws = [negatives.draw(torch.arange(9), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_one_class_has_no_negatives() -> None:
    with pytest.raises(UserError, match="all training images are of one"):
        Negatives(torch.zeros(9, dtype=torch.long), 4)


def test_only_its_batch_s_memories_change_and_they_are_in_the_checkpoint(
    make_training: Callable[..., Trainer],
) -> None:
    training = make_training("crd")
    (part,), batch = training.objective.losses.values(), fixed_batch(training)
    before = part.student_bank.clone(), part.teacher_bank.clone()
    terms, _ = training.objective(batch, 0)
    for bank, old in zip((part.student_bank, part.teacher_bank), before, strict=True):
        changed = (bank != old).any(1).nonzero().flatten()
        assert torch.equal(changed, batch.indices.sort().values)
        assert bank[batch.indices].norm(dim=1) == pytest.approx(1, abs=1e-5)
    assert part.student_constant > 0 and part.teacher_constant > 0
    terms["crd"].backward()
    assert all(parameter.grad is not None for parameter in part.parameters())
    saved = training.objective.losses["crd"].state_dict()
    assert {"student_bank", "teacher_bank", "student_constant", "teacher_constant"} <= set(saved)
    assert not any("labels" in name or "order" in name for name in saved)


def test_the_sum_with_kd_adds_both(make_training: Callable[..., Trainer]) -> None:
    both, alone, kd = (make_training(expression) for expression in ("crd+kd", "crd", "kd"))
    terms = both.objective(fixed_batch(both), 0)[0]
    assert terms["crd"].item() == alone.objective(fixed_batch(alone), 0)[0]["crd"].item()
    assert terms["kd"].item() == kd.objective(fixed_batch(kd), 0)[0]["kd"].item()


def test_bf16(make_training: Callable[..., Trainer]) -> None:
    training = make_training("crd", precision="bf16", options={"crd": {"negatives": 30}})
    with torch.autocast("cpu", torch.bfloat16):
        terms, _ = training.objective(fixed_batch(training), 0)
    assert terms["crd"].dtype == torch.float32 and terms["crd"].isfinite()

"""Against imbalance: class weights, the balanced sampler, and the balanced accuracy of a validation."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import iakd
from iakd.config import Augment, Recipe
from iakd.data.loader import BatchFormat, DeviceLoader, EpochData, EpochSubset, MixedLabels, balanced_order
from iakd.distillation.distiller import weights_of
from iakd.distillation.loss import cross_entropy
from iakd.errors import UserError
from iakd.models.network import initialise
from iakd.training.validation import validate

NAMES = ["a", "b", "c"]
COUNTS = [40, 9, 3]


def images(counts: list[int] = COUNTS, seed: int = 0) -> DeviceLoader:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    pixels = np.random.default_rng(seed + 1).integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8)
    return DeviceLoader(pixels, labels, [0.5], [0.3], "cpu")


@pytest.mark.parametrize("counts", [COUNTS, [5, 5, 5], [1, 0, 100], [2, 2, 3]])
def test_an_epoch_shows_all_classes_equally_often(counts: list[int]) -> None:
    data = images(counts)
    for epoch in range(5):
        order = balanced_order(data.labels, 7, epoch)
        assert len(order) == len(data)
        shown = np.bincount(data.labels[order], minlength=len(counts))
        present = shown[np.array(counts) > 0]
        assert np.ptp(present) <= 1 and (shown[np.array(counts) == 0] == 0).all()
        for label, n in enumerate(counts):
            times = Counter(int(i) for i in order if data.labels[i] == label)
            if n:
                each = [times[int(i)] for i in torch.where(data.labels == label)[0]]
                assert max(each) - min(each) <= 1
    orders = [balanced_order(data.labels, 7, epoch).tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_over_the_epochs_no_image_of_a_large_class_is_left_out() -> None:
    data = images()
    seen = {int(i) for epoch in range(40) for i in balanced_order(data.labels, 0, epoch)}
    assert seen == set(range(len(data)))


def test_batches_are_those_of_the_order_wherever_an_epoch_starts() -> None:
    data, form = images(), BatchFormat(8, Augment(pad=1, flip=True), balanced=True)
    whole = list(data.epoch(3, 1, form))
    assert torch.cat([batch.indices for batch in whole]).tolist() == balanced_order(data.labels, 3, 1).tolist()
    for a, b in zip(data.epoch(3, 1, form, start=4), whole[4:], strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    twice = [tuple(image.flatten().tolist()) for batch in whole for image in batch.images[batch.labels == 2]]
    assert len(set(twice)) > 3  # the same three images under many views


def test_a_subset_is_balanced_among_its_own_images() -> None:
    data = images()
    few = torch.cat([torch.where(data.labels == 0)[0][:30], torch.where(data.labels == 2)[0]])
    subset = EpochSubset(few, few, torch.ones(len(few)))
    batches = list(data.epoch(0, 0, BatchFormat(11, balanced=True), data=EpochData(subset)))
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert sorted(Counter(labels).values()) == [16, 17] and set(labels) == {0, 2}
    assert set(torch.cat([batch.indices for batch in batches]).tolist()) <= set(few.tolist())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_cross_entropy_against_its_formula(smoothing: float, mixed: bool) -> None:
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(0, 3, (12, 3)), np.array([0.5, 2.0, 4.0])
    labels, others, share = rng.integers(0, 3, 12), rng.integers(0, 3, 12), rng.random(12)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def of(labels: np.ndarray) -> np.ndarray:
        target = np.full((12, 3), smoothing / 3)
        target[np.arange(12), labels] += 1 - smoothing
        return -weights[labels] * (target * log_p).sum(1)

    wanted = (share * of(labels) + (1 - share) * of(others)).mean() if mixed else of(labels).mean()
    second = MixedLabels(torch.tensor(others), torch.tensor(share, dtype=torch.float32)) if mixed else None
    given = torch.tensor(logits, dtype=torch.float32), torch.tensor(labels), smoothing, second
    assert cross_entropy(*given, torch.tensor(weights, dtype=torch.float32)).item() == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(cross_entropy(*given, torch.ones(3)), cross_entropy(*given[:3], second, torch.ones(3)))
    assert cross_entropy(*given, torch.ones(3)).item() == pytest.approx(cross_entropy(*given).item(), rel=1e-6)


def test_weights_have_a_mean_of_one_over_the_images() -> None:
    data = images()
    balanced = weights_of(Recipe(class_weights="balanced"), data, NAMES)
    assert balanced is not None and weights_of(Recipe(), data, NAMES) is None
    assert balanced.tolist() == pytest.approx([52 / (3 * n) for n in COUNTS])
    own = weights_of(Recipe(class_weights={"c": 5, "a": 0.5}), data, NAMES)
    assert own is not None and (own / own[1]).tolist() == pytest.approx([0.5, 1, 5])
    assert own[data.labels].mean().item() == pytest.approx(1)
    both = weights_of(Recipe(class_weights={"c": 5}, sampler="balanced"), data, NAMES)
    assert both is not None and both.tolist() == pytest.approx([3 / 7, 3 / 7, 15 / 7])
    absent = weights_of(Recipe(class_weights="balanced"), images([4, 4]), NAMES)
    assert absent is not None and absent.tolist() == pytest.approx([1, 1, 0])
    with pytest.raises(
        UserError, match=r"^recipe.class_weights: no class 'cc' \(did you mean 'c'\?\); known: a, b, c$"
    ):
        weights_of(Recipe(class_weights={"cc": 2}), data, NAMES)


def test_balanced_accuracy_of_a_validation() -> None:
    class Answers(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.eye(4)[torch.zeros(len(images), dtype=torch.int64)]

    found = validate(Answers(), images([6, 2, 0, 2]), 4)  # class 2 has no images
    assert found["val_top1"] == pytest.approx(60) and found["val_balanced_accuracy"] == pytest.approx(100 / 3)


def test_settings_that_are_not_used_are_no_part_of_an_identity() -> None:
    assert not {"class_weights", "sampler"} & set(Recipe().model_dump(mode="json"))
    used = Recipe(class_weights={"a": 2}).model_dump(mode="json")
    assert used["class_weights"] == {"a": 2.0} and Recipe.model_validate(used).class_weights == {"a": 2.0}
    assert Recipe(sampler="balanced").model_dump(mode="json")["sampler"] == "balanced"
    with pytest.raises(ValueError, match="both balanced would correct twice"):
        Recipe(class_weights="balanced", sampler="balanced")
    for bad in ({"a": 0}, {"a": -1}, "balance", ["balanced"]):
        with pytest.raises(ValueError, match="class_weights"):
            Recipe.model_validate({"class_weights": bad})


class Blobs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Nineteen images of class 0 for each of class 1, which is hardly brighter."""

    def __init__(self, counts: tuple[int, int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.repeat([0, 1], counts)
        level = 100 + 24 * self.labels[:, None, None, None]
        self.images = (level + rng.normal(0, 55, (len(self.labels), 1, 8, 8))).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.images[position]), int(self.labels[position])


@pytest.mark.parametrize(
    "change", [{"class_weights": "balanced"}, {"class_weights": {"1": 19}}, {"sampler": "balanced"}]
)
def test_small_classes_are_learned(change: dict[str, Any]) -> None:
    def trained(**more: Any) -> float:
        student = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
        initialise(student, torch.Generator().manual_seed(0))
        recipe = {
            "epochs": 10,
            "batch_size": 32,
            "lr": 0.02,
            "validate_every": 10,
            "lr_schedule": {"kind": "cosine"},
            **more,
        }
        result = iakd.distill(
            None,
            student,
            Blobs((380, 20), 0),
            Blobs((100, 100), 1),
            method="scratch",
            recipe=recipe,
            normalisation=([0.4], [0.25]),
        )
        return float(result.metrics["val_balanced_accuracy"])

    assert trained() < 65 < 80 < trained(**change)

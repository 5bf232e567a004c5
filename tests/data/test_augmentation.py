"""Erasing, cutout, mixup and CutMix, their streams, and their settings."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as theirs
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from iakd.config import Augment, Erase, Mix, Recipe
from iakd.data.augmentation import Augmenter
from iakd.data.augmentation.augmenter import Mixing, blank, cutout_boxes, erasing_boxes
from iakd.data.loader import Batch, BatchFormat, DeviceLoader, EpochData

CPU = torch.device("cpu")
N, SHAPE = 39, (3, 8, 10)
IMAGES = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 5, N)
DATA = DeviceLoader(IMAGES, LABELS, [0.3, 0.5, 0.7], [0.2, 0.25, 0.4], CPU)
KINDS: dict[str, dict[str, Any]] = {
    "policy": {"policy": "trivialaugment"},
    "erase": {"erase": Erase(probability=0.7)},
    "cutout": {"cutout": 4},
    "mixup": {"mixup": Mix(alpha=0.4)},
    "cutmix": {"cutmix": Mix(alpha=1.0, probability=0.6)},
}
EVERYTHING: dict[str, Any] = {name: value for settings in KINDS.values() for name, value in settings.items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def epoch(augment: Augment, start: int = 0, seed: int = 3, number: int = 7) -> list[Batch]:
    return list(DATA.epoch(seed, number, BatchFormat(8, augment), start))


def same(a: Batch, b: Batch) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("settings", [*KINDS.values(), EVERYTHING], ids=[*KINDS, "everything"])
@pytest.mark.parametrize("start", [1, 4])
def test_starting_later_gives_the_very_batches_of_the_whole_epoch(settings: dict[str, Any], start: int) -> None:
    augment = Augment(pad=1, flip=True, **settings)
    whole = epoch(augment)
    assert all(same(a, b) for a, b in zip(whole[start:], epoch(augment, start), strict=True))
    assert not same(whole[0], epoch(augment, seed=4)[0]) and not same(whole[0], epoch(augment, number=8)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_images_and_leaves_the_draws_of_the_others_alone(kind: str) -> None:
    plain = epoch(Augment(pad=1, flip=True))
    changed = epoch(Augment(pad=1, flip=True, **KINDS[kind]))
    assert any(not torch.equal(a.images, b.images) for a, b in zip(plain, changed, strict=True))
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(plain, changed, strict=True))
    assert all(batch.views is None for batch in changed)
    alone = Augmenter(Augment(**KINDS[kind]), (8, 10), 64, 0, 0, CPU)
    others = Augmenter(Augment(pad=2, flip=True, **EVERYTHING), (8, 10), 64, 0, 0, CPU)
    if kind == "policy":
        assert alone._policy and others._policy
        assert torch.equal(alone._policy._layers[0][0], others._policy._layers[0][0])
    elif kind in ("erase", "cutout"):
        assert any(torch.equal(alone._boxes[0], boxes) for boxes in others._boxes)
    crops = Augmenter(Augment(pad=2, flip=True), (8, 10), 64, 0, 0, CPU)
    assert torch.equal(crops._corners, others._corners) and torch.equal(crops._flips, others._flips)


@pytest.mark.parametrize("size", [(32, 32), (8, 10)])
@pytest.mark.parametrize("erase", [Erase(probability=1.0), Erase(probability=1.0, scale=(0.1, 0.9), ratio=(0.5, 4.0))])
def test_erased_rectangles_are_distributed_as_torchvisions(size: tuple[int, int], erase: Erase) -> None:
    n, image = 4000, torch.zeros(1, *size)
    torch.manual_seed(0)
    drawn = [theirs.RandomErasing.get_params(image, erase.scale, erase.ratio, [0.0])[:4] for _ in range(n)]
    expected = torch.tensor(drawn).double()
    boxes = erasing_boxes(erase, size, n, seeded()).double()
    top, left, bottom, right = boxes.unbind(1)
    ours = torch.stack((top, left, bottom - top, right - left), 1)
    found = (bottom > top) & (right > left)
    whole = (expected[:, 2] == size[0]) & (expected[:, 3] == size[1])  # torchvision found no rectangle that fits
    assert abs(found.double().mean() - (~whole).double().mean()) < 0.02
    for moment in (1, 2):
        a, b = ours[found] ** moment, expected[~whole] ** moment
        error = torch.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= size[0]).all() and (right <= size[1]).all()
    area = (ours[:, 2] * ours[:, 3])[found]
    assert float(area.mean()) > erase.scale[0] * size[0] * size[1]


def test_a_share_of_the_images_is_erased() -> None:
    boxes = erasing_boxes(Erase(probability=0.25), (32, 32), 4000, seeded())
    assert abs(float((boxes[:, 2] > boxes[:, 0]).float().mean()) - 0.25) < 0.03
    assert torch.equal(blank(torch.ones(4000, 1, 32, 32), boxes).flatten(1).amin(1) < 1, boxes[:, 2] > boxes[:, 0])


def test_what_is_erased_is_0_and_nothing_else_changes() -> None:
    images = torch.randn(50, 3, 8, 10, generator=seeded())
    boxes = erasing_boxes(Erase(probability=0.8), (8, 10), 50, seeded(1))
    expected = [
        vision.erase(image, i, j, k - i, m - j, torch.zeros(1, 1, 1)) if k > i else image
        for image, (i, j, k, m) in zip(images, boxes.tolist(), strict=True)
    ]
    assert torch.equal(blank(images.clone(), boxes), torch.stack(expected))
    usual = torch.cat([batch.images for batch in epoch(Augment(pad=1))])
    erased = torch.cat([batch.images for batch in epoch(Augment(pad=1, erase=Erase(probability=0.5)))])
    changed = (usual != erased).flatten(1).any(1)
    assert 5 < int(changed.sum()) < 34
    assert (erased[usual != erased] == 0).all()


@pytest.mark.parametrize("side", [1, 4, 5, 16])
def test_cutout_blanks_a_square_about_any_pixel_which_may_reach_over_the_border(side: int) -> None:
    height, width = 8, 10
    boxes = cutout_boxes(side, (height, width), 3000, seeded())
    assert (boxes[:, 2:] - boxes[:, :2] == side).all()
    centres = boxes[:, :2] + side // 2
    assert sorted(set(map(tuple, centres.tolist()))) == [(y, x) for y in range(height) for x in range(width)]
    shown = blank(torch.ones(3000, 1, height, width), boxes)
    for image, (y, x) in zip(shown[:40, 0], centres[:40].tolist(), strict=True):
        mask = np.ones((height, width))
        first = [max(c - side // 2, 0) for c in (y, x)]
        mask[first[0] : y - side // 2 + side, first[1] : x - side // 2 + side] = 0  # DeVries and Taylor, section 3.2
        assert np.array_equal(image, mask)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_is_torchvisions_with_the_share_that_was_drawn(kind: str) -> None:
    mixing = Mixing(Augment(**KINDS[kind]), (8, 10), 80, seeded())
    images, labels = torch.randn(7, 3, 8, 10, generator=seeded(1)), torch.arange(7)
    batch = {"labels": labels, "batch_size": 7}
    for position in range(0, 73, 8):
        own, box = mixing.draw(position)
        if kind == "mixup":
            assert box is None
            expected = v2.MixUp(num_classes=7).transform(images, {**batch, "lam": own})
        elif box:
            top, left, bottom, right = box
            assert own == pytest.approx(1 - (bottom - top) * (right - left) / 80)
            expected = v2.CutMix(num_classes=7).transform(images, {**batch, "box": (left, top, right, bottom)})
        else:
            assert own == 1
            expected = images
        shown, other, share = mixing.apply(images.clone(), labels, slice(position, position + 7))
        torch.testing.assert_close(shown, expected)
        assert other.tolist() == labels.roll(1).tolist()
        assert share.dtype == torch.float32 and torch.allclose(share, torch.tensor(own).float())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    n = 4000
    mixing = Mixing(Augment(mixup=Mix(alpha=alpha)), (8, 8), n, seeded())
    shares = np.array([mixing.draw(position)[0] for position in range(n)])
    deviation = math.sqrt(1 / (4 * (2 * alpha + 1)))  # of Beta(alpha, alpha)
    assert abs(shares.mean() - 0.5) < 4 * deviation / math.sqrt(n)
    assert abs(shares.std() / deviation - 1) < 0.06


def test_boxes_of_cutmix_have_the_area_that_was_drawn_where_the_border_does_not_cut_them() -> None:
    mixing = Mixing(Augment(cutmix=Mix(alpha=1.0)), (100, 100), 3000, seeded())
    boxes = np.array([mixing.draw(position)[1] or (0, 0, 0, 0) for position in range(3000)])
    inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < 100).all(1)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e4
    drawn = 1 - mixing._uniform[:, 2].numpy()  # Beta(1, 1) is uniform
    assert inside.sum() > 300 and np.abs(areas - drawn)[inside].max() < 0.04
    centres = (boxes[:, :2] + boxes[:, 2:])[inside] / 2
    assert np.abs(centres.mean(0) - 50).max() < 3


def test_each_batch_gets_one_of_mixup_and_cutmix_or_neither() -> None:
    augment = Augment(mixup=Mix(alpha=1.0, probability=0.5), cutmix=Mix(alpha=1.0))
    mixing = Mixing(augment, (8, 8), 4000, seeded())
    draws = [mixing.draw(position) for position in range(4000)]
    cut = sum(box is not None for _, box in draws) / 4000
    whole = sum(own == 1 and box is None for own, box in draws) / 4000
    assert abs(cut - 0.5) < 0.03 and abs(whole - 0.25) < 0.03


def test_a_mixed_batch_tells_both_labels_and_their_weight() -> None:
    for batch, plain in zip(epoch(Augment(mixup=Mix(alpha=1.0))), epoch(Augment()), strict=True):
        assert batch.mixed is not None
        assert torch.equal(batch.labels, plain.labels) and batch.mixed.labels.dtype == torch.int64
        own = batch.mixed.weight.view(-1, 1, 1, 1)
        torch.testing.assert_close(batch.images, own * plain.images + (1 - own) * plain.images.roll(1, 0))
        assert torch.equal(batch.mixed.labels, plain.labels.roll(1))
        assert plain.mixed is None


def test_a_second_view_is_changed_but_never_mixed() -> None:
    strong = Augment(pad=1, policy="randaugment", erase=Erase(), cutout=2)
    mixed, plain = Augment(mixup=Mix(alpha=1.0)), Augment()
    for a, b in zip(
        DATA.epoch(0, 0, BatchFormat(8, mixed), data=EpochData(second_view=strong)),
        DATA.epoch(0, 0, BatchFormat(8, plain), data=EpochData(second_view=strong)),
        strict=True,
    ):
        assert a.second_view is not None and b.second_view is not None and torch.equal(a.second_view, b.second_view)
        assert not torch.equal(a.second_view, b.images) and not torch.equal(a.images, b.images)
    with pytest.raises(ValueError, match="mixed"):
        next(DATA.epoch(0, 0, BatchFormat(8, plain), data=EpochData(second_view=mixed)))


def test_what_is_off_leaves_the_identity_of_a_run_alone() -> None:
    assert Augment(pad=4).model_dump(mode="json") == {"pad": 4, "flip": False}
    assert Augment(magnitude=3).model_dump() == Augment().model_dump()
    for settings in (*KINDS.values(), EVERYTHING, {"policy": "randaugment"}):
        recipe = Recipe(augment=Augment(pad=4, **settings))
        written = recipe.model_dump(mode="json")
        assert Recipe.model_validate(written) == recipe
        assert written["augment"].keys() - {"pad", "flip", "operations", "magnitude"} == settings.keys()
    assert Augment(policy="randaugment").model_dump()["magnitude"] == 9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "autoaugment"}, "'none', 'randaugment' or 'trivialaugment'"),
        ({"policy": "randaugment", "magnitude": 31}, "less than or equal to 30"),
        ({"erase": {"scale": [0.5, 0.1]}}, r"scale: expected \[low, high\] with 0 < low ≤ high, got \[0.5, 0.1\]"),
        ({"erase": {"ratio": [0, 3]}}, "ratio: expected"),
        ({"mixup": {}}, "alpha"),
        ({"cutmix": {"alpha": 0}}, "greater than 0"),
    ],
)
def test_mistakes_in_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Augment.model_validate(settings)


def test_views_are_finitely_many_only_without_the_rest() -> None:
    assert Augment(pad=4, flip=True).views == 162
    assert all(Augment(pad=4, flip=True, **settings).views is None for settings in KINDS.values())


def test_layout_does_not_matter() -> None:
    augment = Augment(pad=1, flip=True, **EVERYTHING)
    for a, b in zip(
        DATA.epoch(0, 0, BatchFormat(8, augment)),
        DATA.epoch(0, 0, BatchFormat(8, augment, channels_last=True)),
        strict=True,
    ):
        assert torch.equal(a.images, b.images) and b.images.is_contiguous(memory_format=torch.channels_last)


def test_the_set_itself_is_never_changed() -> None:
    before: Tensor = DATA.images.clone()
    epoch(Augment(pad=1, flip=True, **EVERYTHING))
    epoch(Augment(**EVERYTHING))
    assert torch.equal(DATA.images, before)

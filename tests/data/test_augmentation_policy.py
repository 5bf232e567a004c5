"""RandAugment and TrivialAugment: every operation beside torchvision's, image by image, and what is drawn."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as theirs
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from iakd.config import Augment
from iakd.data.augmentation import policy
from iakd.data.augmentation.policy import BINS, KERNELS, Operation, Policy, operations
from iakd.data.loader import BatchFormat, DeviceLoader

NAMES = ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"]
NAMES += ["Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"]
POLICIES = {"randaugment": theirs.RandAugment(), "trivialaugment": theirs.TrivialAugmentWide()}
SHAPES = [(3, 32, 32), (1, 8, 8), (3, 20, 13)]
CPU = torch.device("cpu")


def pictures(shape: tuple[int, int, int]) -> Tensor:
    """Two images for each bin: noise, smooth ones of few levels, and constant ones."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2 * BINS - 6, *shape), dtype=np.uint8)
    noise[::2] = np.clip(np.cumsum(rng.integers(-9, 10, noise[::2].shape), -1) + 128, 0, 255)
    flat = np.broadcast_to(rng.integers(0, 256, (6, shape[0], 1, 1), dtype=np.uint8), (6, *shape))
    return torch.from_numpy(rng.permutation(np.concatenate((noise, flat))))


def reference(name: str, image: Tensor, value: float) -> Tensor:
    """torchvision's, with its default interpolation (nearest) and fill (0)."""
    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    degrees = math.degrees(math.atan(value))
    match name:
        case "ShearX":
            return vision.affine(image, **{**still, "shear": [degrees, 0.0]}, center=[0, 0])
        case "ShearY":
            return vision.affine(image, **{**still, "shear": [0.0, degrees]}, center=[0, 0])
        case "TranslateX":
            return vision.affine(image, **{**still, "translate": [int(value), 0]})
        case "TranslateY":
            return vision.affine(image, **{**still, "translate": [0, int(value)]})
        case "Rotate":
            return vision.rotate(image, value)
        case "Brightness":
            return vision.adjust_brightness(image, 1 + value)
        case "Color":
            return vision.adjust_saturation(image, 1 + value)
        case "Contrast":
            return vision.adjust_contrast(image, 1 + value)
        case "Sharpness":
            return vision.adjust_sharpness(image, 1 + value)
        case "Posterize":
            return vision.posterize(image, int(value))
        case "Solarize":
            return vision.solarize(image, value)
        case "AutoContrast":
            return vision.autocontrast(image)
        case "Equalize":
            return vision.equalize(image)
    return image


def apply(operation: Operation, images: Tensor, values: Tensor) -> Tensor:
    kernel = KERNELS[operation.kernel]
    if kernel is None:
        return images
    size = (images.shape[2], images.shape[3])
    return kernel(images, operation.matrices(values, size) if operation.matrices else values + operation.offset)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_an_operation_is_torchvisions_image_by_image(policy: str, shape: tuple[int, int, int], position: int) -> None:
    images = pictures(shape)
    operation = operations(Augment(policy=policy), shape[1:])[position]  # type: ignore[arg-type]
    signs = torch.tensor([1, -1] * BINS) if operation.signed else torch.ones(2 * BINS)
    values = operation.values.double().repeat(2) * signs
    before = images.clone()
    shown = apply(operation, images, values)
    assert torch.equal(images, before) and shown.dtype == torch.uint8 and shown.shape == images.shape
    expected = torch.stack(
        [reference(NAMES[position], image, value) for image, value in zip(images, values.tolist(), strict=True)]
    )
    different = (shown.int() - expected.int()).abs()
    # torchvision fuses a multiplication and an addition, so a level may fall on the other side of a whole number
    allowed = {"Color": 0.003, "Sharpness": 0.0005}.get(NAMES[position], 0)
    assert int(different.max()) <= (allowed > 0) and float((different > 0).float().mean()) <= allowed
    if position and (NAMES[position], shape[0]) not in (("Color", 1), ("Equalize", 1)):  # grey; too few pixels
        assert not torch.equal(shown, images)


@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_an_image_comes_out_the_same_in_any_batch(position: int) -> None:
    images = pictures((3, 20, 13))
    operation = operations(Augment(policy="trivialaugment"), (20, 13))[position]
    values = operation.values.double().repeat(2)
    whole = apply(operation, images, values)
    for part in (slice(0, 1), slice(1, 8), slice(8, 61)):
        assert torch.equal(apply(operation, images[part], values[part]), whole[part])


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (224, 160)])
@pytest.mark.parametrize("policy", POLICIES)
def test_ranges_are_torchvisions(policy: str, size: tuple[int, int]) -> None:
    arguments = (BINS, size) if policy == "randaugment" else (BINS,)
    space = POLICIES[policy]._augmentation_space(*arguments)
    ours = operations(Augment(policy=policy), size)  # type: ignore[arg-type]
    assert list(space) == NAMES
    for operation, (values, signed) in zip(ours, space.values(), strict=True):
        assert operation.signed == signed
        assert torch.equal(operation.values, values.float().expand(BINS))


@pytest.mark.parametrize(
    "augment", [Augment(policy="randaugment", operations=3, magnitude=12), Augment(policy="trivialaugment")]
)
def test_a_batch_goes_through_the_operations_that_were_drawn_for_its_positions(augment: Augment) -> None:
    shape, n = (3, 8, 10), 60
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (n, *shape), dtype=np.uint8))
    policy = Policy(augment, shape[1:], n, torch.Generator().manual_seed(7), CPU)
    draws = torch.Generator().manual_seed(7)
    every = operations(augment, shape[1:])
    expected = list(images.split(1))
    for _ in range(3 if augment.policy == "randaugment" else 1):
        chosen = torch.randint(len(every), (n,), generator=draws).tolist()
        bins = torch.randint(BINS, (n,), generator=draws).tolist()
        negative = torch.randint(2, (n,), generator=draws).tolist()
        for i, (one, bin_, minus) in enumerate(zip(chosen, bins, negative, strict=True)):
            value = every[one].values[12 if augment.policy == "randaugment" else bin_].double().view(1)
            expected[i] = apply(every[one], expected[i], -value if minus and every[one].signed else value)
    shown = torch.cat([policy.apply(images[part], part) for part in (slice(0, 7), slice(7, 50), slice(50, 60))])
    assert torch.equal(shown, torch.cat(expected))


def test_operations_magnitudes_and_signs_are_uniform() -> None:
    n = 42_000
    policy = Policy(Augment(policy="trivialaugment"), (8, 8), n, torch.Generator().manual_seed(0), CPU)
    kernels, amounts, _ = policy._layers[0]
    counts = kernels.bincount(minlength=len(KERNELS))
    expected = n / 14 * torch.tensor([1, 5, 1, 1, 1, 1, 1, 1, 1, 1])
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # 9 degrees of freedom: once in a thousand
    brightness = Counter(amounts[kernels == 2].mul(1000).round().int().tolist())
    assert len(brightness) == 2 * BINS - 1  # 1 is both +0 and -0
    assert abs(brightness[1000] / brightness.total() - 1 / BINS) < 0.012
    assert abs(sum(count for value, count in brightness.items() if value > 1000) / brightness.total() - 0.484) < 0.04


def test_a_translation_moves_the_picture_to_the_right_and_down() -> None:
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 1, 1] = 9
    for translate, place in ((policy.translate_x, (1, 3)), (policy.translate_y, (3, 1))):
        shown = policy.affine(image, translate(torch.tensor([2.9]).double(), (5, 5)))
        assert shown.nonzero().tolist() == [[0, 0, *place]]


@pytest.mark.parametrize("start", [1, 4])
def test_starting_later_gives_the_very_batches_of_the_whole_epoch(start: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (39, 3, 8, 8), dtype=np.uint8)
    data = DeviceLoader(images, np.zeros(39, dtype=np.int64), [0.5] * 3, [0.2] * 3, CPU)
    augment = Augment(pad=1, flip=True, policy="randaugment")
    whole = list(data.epoch(0, 1, BatchFormat(8, augment)))
    for a, b in zip(whole[start:], data.epoch(0, 1, BatchFormat(8, augment), start), strict=True):
        assert torch.equal(a.images, b.images) and a.views is b.views is None
    assert not torch.equal(whole[0].images, next(data.epoch(0, 2, BatchFormat(8, augment))).images)

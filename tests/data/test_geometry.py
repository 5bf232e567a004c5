"""Which part of an image is shown, against torchvision."""

import math
from collections.abc import Iterator

import numpy as np
import photos
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import transforms as implementation

from iakd.data.decoding import decode, from_bytes
from iakd.data.geometry import DRAWS, TRIES, RandomCrops, centre_box, centre_crop, random_box

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


class FedTorch:
    """torch as torchvision's RandomResizedCrop sees it, but with given random numbers."""

    def __init__(self, draws: list[float]) -> None:
        self.tries, self.place = iter(draws[: 2 * TRIES]), iter(draws[2 * TRIES :])

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def empty(self, n: int) -> "FedTorch":
        return self

    def uniform_(self, low: float, high: float) -> torch.Tensor:
        low, high = float(low), float(high)
        return torch.tensor([low + (high - low) * next(self.tries)], dtype=torch.float64)

    def log(self, values: torch.Tensor) -> torch.Tensor:
        return torch.log(values.double())

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([low + int(next(self.place) * (high - low))])


def shapes() -> Iterator[tuple[int, int]]:
    yield from ((375, 500), (500, 375), (64, 64), (40, 1000), (1000, 30), (3, 2), (1, 1))


@pytest.mark.parametrize(("height", "width"), shapes())
def test_random_boxes_are_torchvisions_for_the_same_draws(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(height * width)
    for _ in range(300):
        draws = random.random(DRAWS).tolist()
        monkeypatch.setattr(implementation, "torch", FedTorch(draws))
        image = torch.empty(3, height, width)
        top, left, tall, wide = transforms.RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))
        assert random_box(draws, height, width, SCALE, RATIO) == (left, top, left + wide, top + tall)


def test_random_boxes_are_distributed_as_said() -> None:
    crops = RandomCrops("augment", 0, 0, SCALE, RATIO)
    height = width = 2000  # so large that hardly any box fails to fit, and rounding does not matter
    boxes = [crops.at(position)(height, width) for position in range(4000)]
    wide = np.array([box.right - box.left for box in boxes])
    tall = np.array([box.bottom - box.top for box in boxes])
    share = wide * tall / (height * width)
    small = share < 0.5  # these fit at once, whatever their ratio
    # A share a > 3/4 fits with probability ln(a)/ln(3/4), else everything is redrawn: 0.42 / (0.75 - 0.08 + 0.119)
    assert abs(small.mean() - 0.532) < 0.026  # 3.3 standard deviations
    for values, low, high in (
        (share[small], 0.08, 0.5),
        (np.log(wide / tall)[small], math.log(RATIO[0]), math.log(RATIO[1])),
        ((np.array([box.left for box in boxes]) / (width - wide + 1))[small], 0, 1),
        ((np.array([box.top for box in boxes]) / (height - tall + 1))[small], 0, 1),
    ):
        uniform = (np.sort(values) - low) / (high - low)
        distance = np.abs(uniform - (np.arange(len(values)) + 0.5) / len(values)).max()  # Kolmogorov–Smirnov
        assert distance < 1.95 / math.sqrt(len(values))  # missed once in a thousand
    assert abs(np.corrcoef(share[small], (wide / tall)[small])[0, 1]) < 0.08


def test_draws_depend_on_stream_seed_epoch_and_position_alone() -> None:
    def box(*key: object, position: int = 3) -> object:
        return RandomCrops(*key, SCALE, RATIO).at(position)(500, 500)  # type: ignore[arg-type]

    first = box("augment", 1, 2)
    assert first == box("augment", 1, 2)
    others = [box("second", 1, 2), box("augment", 2, 2), box("augment", 1, 1), box("augment", 1, 2, position=4)]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (256, 256), (224, 224), (100, 90)])
def test_the_centre_is_torchvisions_resize_and_centre_crop(height: int, width: int) -> None:
    picture = photos.photo(height, width, 1)
    content = photos.encoded(picture, "PNG")
    ours = decode(from_bytes("x", content), 3, (224, 224), centre_crop((224, 224), 0.875))[0].astype(int)
    theirs = transforms.Compose([transforms.Resize(256, InterpolationMode.BILINEAR), transforms.CenterCrop(224)])
    expected = np.asarray(theirs(picture), dtype=int).transpose(2, 0, 1)
    assert np.abs(ours - expected).mean() < 1.5  # they round the place to whole pixels in between


def test_the_centre_covers_the_size() -> None:
    assert centre_box(100, 300, (50, 50)) == (100, 0, 200, 100)
    assert centre_box(100, 300, (50, 100)) == (50, 0, 250, 100)
    assert centre_box(300, 100, (50, 100), 0.5) == (25, 137.5, 75, 162.5)
    assert centre_box(64, 64, (64, 64)) == (0, 0, 64, 64)

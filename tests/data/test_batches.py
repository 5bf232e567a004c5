"""Resident batches: order, augmentation, normalisation, and going on in the middle of an epoch."""

from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as vision

from iakd.config import Augment
from iakd.data.loader import Batch, BatchFormat, DeviceLoader, EpochData, EpochSubset, steps_per_epoch
from iakd.seeding import derive

NOTHING = Augment()
N, SHAPE = 41, (3, 6, 4)
IMAGES = np.random.default_rng(0).integers(1, 256, (N, *SHAPE), dtype=np.uint8)  # no 0: padding shows
LABELS = np.random.default_rng(1).integers(0, 5, N)
MEAN, STD = [0.3, 0.5, 0.7], [0.2, 0.25, 0.4]


def resident(n: int = N) -> DeviceLoader:
    return DeviceLoader(IMAGES[:n], LABELS[:n], MEAN, STD, "cpu")


def bare(images: np.ndarray) -> DeviceLoader:
    """Batches whose values are the uint8 values: mean 0 and std 1/255."""
    channels = images.shape[1]
    labels = np.zeros(len(images), dtype=np.int64)
    return DeviceLoader(images, labels, [0.0] * channels, [1 / 255] * channels, "cpu")


def same(a: Batch, b: Batch) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_epoch_shows_every_image_once_with_its_label_and_normalised() -> None:
    batches = list(resident().epoch(0, 0, BatchFormat(8, NOTHING)))
    assert [len(batch.labels) for batch in batches] == [8] * 5  # 41 = 5·8 + 1: one image cannot be normalised
    indices = torch.cat([batch.indices for batch in batches])
    assert len(set(indices.tolist())) == 40 and indices.tolist() != sorted(indices.tolist())
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    for batch in batches:
        assert batch.images.dtype == torch.float32 and batch.images.is_contiguous()
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.labels.tolist() == LABELS[batch.indices].tolist()
        expected = (IMAGES[batch.indices].astype(np.float64) / 255 - mean) / std
        np.testing.assert_allclose(batch.images.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (40, 8, [8] * 5),
        (41, 8, [8] * 5),
        (39, 8, [8, 8, 8, 8, 7]),
        (10, 8, [8, 2]),
        (5, 8, [5]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_only_a_remainder_of_one_image_is_left_out(n: int, batch_size: int, sizes: list[int]) -> None:
    data = resident(n)
    assert steps_per_epoch(len(data), batch_size) == len(sizes)
    assert [len(batch.labels) for batch in data.epoch(0, 0, BatchFormat(batch_size, NOTHING))] == sizes


def test_the_image_that_is_left_out_changes_from_epoch_to_epoch() -> None:
    data = resident()
    left = set()
    for epoch in range(8):
        shown = torch.cat([batch.indices for batch in data.epoch(0, epoch, BatchFormat(8, NOTHING))])
        left |= set(range(N)) - set(shown.tolist())
    assert len(left) > 3


def test_plain_batches_are_all_images_in_their_order() -> None:
    batches = list(resident().plain(8))
    assert [len(batch.labels) for batch in batches] == [8, 8, 8, 8, 8, 1]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(N))
    assert torch.cat([batch.labels for batch in batches]).tolist() == LABELS.tolist()
    shown = torch.cat([batch.images for batch in bare(IMAGES).plain(8)])
    assert torch.equal(shown.round().to(torch.uint8), torch.from_numpy(IMAGES))


def test_the_training_set_has_mean_0_and_std_1_under_its_own_statistics() -> None:
    pixels = IMAGES.astype(np.float64) / 255
    data = DeviceLoader(IMAGES, LABELS, pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).tolist(), "cpu")
    shown = torch.cat([batch.images for batch in data.plain(8)]).double()
    torch.testing.assert_close(shown.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(shown.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("augment", [NOTHING, Augment(pad=2), Augment(flip=True), Augment(pad=2, flip=True)])
@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_starting_later_gives_the_very_batches_of_the_whole_epoch(augment: Augment, start: int) -> None:
    whole = list(resident(39).epoch(3, 7, BatchFormat(8, augment)))
    rest = list(resident(39).epoch(3, 7, BatchFormat(8, augment), start=start))
    assert len(rest) == max(5 - start, 0)
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_draws_depend_on_seed_and_epoch_and_on_nothing_before() -> None:
    augment = Augment(pad=2, flip=True)
    data = resident()
    first = next(data.epoch(0, 1, BatchFormat(8, augment)))
    torch.manual_seed(5)
    list(data.epoch(9, 9, BatchFormat(8, augment)))
    state = torch.random.get_rng_state()
    assert same(first, next(data.epoch(0, 1, BatchFormat(8, augment))))
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone
    for seed, epoch in ((1, 1), (0, 2), (1, 0)):
        assert not torch.equal(first.indices, next(data.epoch(seed, epoch, BatchFormat(8, augment))).indices)
    for other in (NOTHING, Augment(pad=1)):
        assert torch.equal(first.indices, next(data.epoch(0, 1, BatchFormat(8, other))).indices)  # streams are separate


@pytest.mark.parametrize("shape", [(3, 6, 4), (1, 8, 8), (2, 5, 9)])
@pytest.mark.parametrize("augment", [Augment(pad=2, flip=True), Augment(pad=1), Augment(flip=True), Augment(pad=3)])
def test_augmentation_is_what_torchvision_does_image_by_image(shape: tuple[int, int, int], augment: Augment) -> None:
    images = np.random.default_rng(2).integers(1, 256, (30, *shape), dtype=np.uint8)
    height, width = shape[1:]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(derive("order", 4, 2)))
    draws = torch.Generator().manual_seed(derive("augment", 4, 2))
    flips = torch.randint(2, (30,), generator=draws)
    top, left = torch.randint(2 * augment.pad + 1, (2, 30), generator=draws)
    expected = []
    for position, index in enumerate(order.tolist()):
        image = vision.pad(torch.from_numpy(images[index]), [augment.pad])
        image = vision.crop(image, int(top[position]), int(left[position]), height, width)
        expected.append(vision.hflip(image) if augment.flip and flips[position] else image)
    shown = torch.cat([batch.images for batch in bare(images).epoch(4, 2, BatchFormat(7, augment))])
    assert torch.equal(shown.round().to(torch.uint8), torch.stack(expected))


@pytest.mark.parametrize("shape", [(3, 6, 4), (1, 8, 8)])
@pytest.mark.parametrize("augment", [NOTHING, Augment(pad=2, flip=True), Augment(pad=1), Augment(flip=True)])
def test_an_image_and_the_number_of_its_view_give_the_very_image_that_was_shown(
    shape: tuple[int, int, int], augment: Augment
) -> None:
    images = np.random.default_rng(2).integers(1, 256, (30, *shape), dtype=np.uint8)
    mean = [0.3, 0.5, 0.7][: shape[0]]
    data = DeviceLoader(images, np.zeros(30, dtype=np.int64), mean, mean, "cpu")
    assert augment.views is not None
    for epoch in range(2):
        for batch in data.epoch(5, epoch, BatchFormat(7, augment, channels_last=True)):
            assert batch.views is not None and batch.views.dtype == torch.int64
            assert int(batch.views.min()) >= 0 and int(batch.views.max()) < augment.views
            again = data.view_images(batch.indices, batch.views, augment, channels_last=True)
            assert torch.equal(again, batch.images) and again.stride() == batch.images.stride()
    for batch in data.plain(7):
        unchanged = torch.full_like(batch.indices, augment.unchanged)
        assert torch.equal(data.view_images(batch.indices, unchanged, augment), batch.images)


def test_views_are_numbered_by_flip_top_and_left() -> None:
    augment = Augment(pad=1, flip=True)
    assert (Augment().views, Augment(pad=1).views, augment.views) == (1, 9, 18)
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 1, 3, 3)
    views = bare(image).view_images(torch.zeros(18, dtype=torch.int64), torch.arange(18), augment).round()
    assert len({tuple(view.flatten().tolist()) for view in views}) == 18
    padded = np.pad(image[0, 0], 1)
    for view, shown in enumerate(views[:, 0]):
        flip, top, left = view // 9, view // 3 % 3, view % 3
        expected = padded[top : top + 3, left : left + 3]
        assert np.array_equal(shown, expected[:, ::-1] if flip else expected)


def test_a_second_view_is_of_the_same_images_and_drawn_independently() -> None:
    augment = Augment(pad=1)
    images = np.zeros((200, 1, 5, 5), dtype=np.uint8)
    images[:, 0, 2, 2] = np.arange(1, 201)
    whole = list(
        bare(images).epoch(0, 3, BatchFormat(50, Augment(pad=1, flip=True)), data=EpochData(second_view=augment))
    )
    rest = bare(images).epoch(0, 3, BatchFormat(50, Augment(pad=1, flip=True)), 2, data=EpochData(second_view=augment))
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))
    agree = 0
    for batch, alone in zip(whole, bare(images).epoch(0, 3, BatchFormat(50, Augment(pad=1, flip=True))), strict=True):
        assert torch.equal(batch.images, alone.images) and alone.second_view is None
        assert batch.second_view is not None
        assert torch.equal(batch.second_view.amax((1, 2, 3)), batch.images.amax((1, 2, 3)))  # the dot tells the image
        agree += int((batch.second_view.flatten(1).argmax(1) == batch.images.flatten(1).argmax(1)).sum())
    assert 0.04 < agree / 200 < 0.2  # 1/9 by chance


def test_padding_is_black_before_normalisation() -> None:
    white = np.full((64, 3, 6, 4), 255, dtype=np.uint8)
    data = DeviceLoader(white, np.zeros(64, dtype=np.int64), MEAN, STD, "cpu")
    shown = torch.cat([batch.images for batch in data.epoch(0, 0, BatchFormat(16, Augment(pad=2)))])
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        values = shown[:, channel].unique()
        np.testing.assert_allclose(values, [-mean / std, (1 - mean) / std], rtol=1e-5)


def test_shifts_and_flips_are_uniform_and_independent() -> None:
    pad, n = 2, 6000
    images = np.zeros((n, 1, 7, 9), dtype=np.uint8)
    images[:, 0, 3, 4] = 200  # a dot in the middle shows the shift,
    images[:, 0, 3, 5] = 100  # its neighbour the side that was right
    counts: Counter[tuple[int, int, bool]] = Counter()
    for batch in bare(images).epoch(0, 0, BatchFormat(500, Augment(pad=pad, flip=True))):
        for image in batch.images[:, 0].round():
            row, column = divmod(int(image.argmax()), 9)
            flipped = bool(column and image[row, column - 1] == 100)
            counts[row - 3, (column - 4) * (-1 if flipped else 1), flipped] += 1
    cells = (2 * pad + 1) ** 2 * 2
    assert len(counts) == cells
    assert {(y, x) for y, x, _ in counts} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    chi_square = sum((count - n / cells) ** 2 / (n / cells) for count in counts.values())
    assert 23 < chi_square < 85.4  # 49 degrees of freedom: each bound missed once in a thousand


def test_neighbours_in_a_batch_and_epochs_are_augmented_independently() -> None:
    def shifts(epoch: int) -> list[int]:
        images = np.zeros((200, 1, 5, 5), dtype=np.uint8)
        images[:, 0, 2, 2] = 200
        batches = bare(images).epoch(0, epoch, BatchFormat(50, Augment(pad=1)))
        return [int(image.argmax()) for batch in batches for image in batch.images]

    a, b = shifts(0), shifts(1)
    for x, y in ((a, b), (a[1:], a[:-1])):
        agree = sum(p == q for p, q in zip(x, y, strict=True)) / len(y)
        assert 0.04 < agree < 0.2  # 1/9 by chance


def test_channels_last_changes_the_layout_only() -> None:
    augment = Augment(pad=1, flip=True)
    for usual, last in zip(
        resident().epoch(0, 0, BatchFormat(8, augment)),
        resident().epoch(0, 0, BatchFormat(8, augment, channels_last=True)),
        strict=True,
    ):
        assert same(usual, last)
        assert last.images.is_contiguous(memory_format=torch.channels_last)
        assert not usual.images.is_contiguous(memory_format=torch.channels_last)
    assert next(resident().plain(8, channels_last=True)).images.is_contiguous(memory_format=torch.channels_last)


def test_the_set_is_a_copy_and_batches_do_not_share_its_memory() -> None:
    images = IMAGES.copy()
    data = DeviceLoader(images, LABELS, MEAN, STD, "cpu")
    before = data.images.clone()
    images[:] = 0
    for batch in [*data.epoch(0, 0, BatchFormat(8, NOTHING)), *data.plain(8)]:
        batch.images.zero_()
    assert torch.equal(data.images, before) and len(data) == N


def test_an_epoch_of_chosen_images_with_others_mixed_in() -> None:
    indices = torch.tensor([4, 9, 2, 30, 17, 11, 5])
    partners = torch.tensor([4, 8, 2, 31, 17, 12, 5])
    weights = torch.tensor([1.0, 0.7, 1.0, 0.85, 1.0, 0.9, 1.0])
    choice = EpochSubset(indices, partners, weights)
    data, augment = bare(IMAGES), Augment(pad=1, flip=True)
    seen: dict[int, np.ndarray] = {}
    for batch in data.epoch(0, 3, BatchFormat(4, NOTHING), data=EpochData(choice)):
        assert batch.position is not None
        part = slice(batch.position.start, batch.position.start + len(batch.indices))
        assert torch.equal(batch.position.views.indices[part], batch.indices)
        seen |= dict(zip(batch.indices.tolist(), batch.images.numpy(), strict=True))
    assert sorted(seen) == sorted(indices.tolist())
    for index, partner, weight in zip(indices.tolist(), partners.tolist(), weights.tolist(), strict=True):
        expected = np.round(weight * IMAGES[index].astype(float) + (1 - weight) * IMAGES[partner].astype(float))
        np.testing.assert_allclose(seen[index], expected, atol=1.001 if weight < 1 else 1e-3)
    for batch in data.epoch(0, 3, BatchFormat(4, augment), data=EpochData(choice)):
        assert batch.views is not None
        mixed = torch.tensor([weights[indices == index].item() < 1 for index in batch.indices])
        assert ((batch.views == -1) == mixed).all()  # they are no views of an image of the set
        plain = ~mixed
        again = data.view_images(batch.indices[plain], batch.views[plain], augment)
        assert torch.equal(again, batch.images[plain])
    whole = list(data.epoch(0, 3, BatchFormat(2, augment), data=EpochData(choice)))
    rest = data.epoch(0, 3, BatchFormat(2, augment), start=2, data=EpochData(choice))
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_choosing_all_images_changes_nothing() -> None:
    everything = torch.arange(N)
    choice = EpochSubset(everything, everything, torch.ones(N))
    augment = Augment(pad=1, flip=True)
    whole = resident().epoch(0, 3, BatchFormat(8, augment))
    assert all(
        same(a, b)
        for a, b in zip(whole, resident().epoch(0, 3, BatchFormat(8, augment), data=EpochData(choice)), strict=True)
    )

"""What of a data set falls into train, val and test, and what is said where too little is left."""

import numpy as np
import pytest

from iakd.config import Dataset
from iakd.data.source_data import SourceData
from iakd.data.splits import count_of, count_per_class, fraction_per_class, split_source, stratified
from iakd.errors import UserError

COUNTS = [60, 30, 10]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS)).astype(np.int64)
CLASSES = ["ant", "bee", "cat"]


def images(n: int) -> np.ndarray:
    return np.zeros((n, 1, 2, 2), np.uint8)


def source(labels: np.ndarray = LABELS, **own: np.ndarray) -> SourceData:
    """A source with these training labels and, by `test` and `val`, labels of its own parts."""
    parts = {"train": labels, **own}
    return SourceData.from_splits({name: images(len(part)) for name, part in parts.items()}, parts, CLASSES, [])


def test_parts_share_no_image_and_leave_none_out() -> None:
    parts = split_source(source(), Dataset(val=0.1, test=0.2))
    assert [len(parts[name].indices) for name in ("train", "val", "test")] == [70, 10, 20]
    every = np.concatenate([part.indices for part in parts.values()])
    assert sorted(every.tolist()) == list(range(100))
    assert parts["test"].per_class(3) == [12, 6, 2] and parts["val"].per_class(3) == [6, 3, 1]
    assert {part.origin for part in parts.values()} == {"train"}
    assert all((np.diff(part.indices) > 0).all() for part in parts.values())


def test_parts_of_the_source_stay_whole() -> None:
    own = {"test": np.array([2, 0, 1, 1]), "val": np.array([0, 1, 2, 2, 2])}
    raw = source(**own)
    parts = split_source(raw, Dataset(val=0.1, test=0.2))
    for name, labels in own.items():
        assert (parts[name].origin, parts[name].indices.tolist()) == (name, list(range(len(labels))))
        assert parts[name].labels.tolist() == labels.tolist()
    assert parts["test"].images is raw.test_images and parts["val"].images is raw.val_images
    assert parts["train"].indices.tolist() == list(range(100))


def test_what_the_source_has_is_not_drawn_again() -> None:
    only_val = split_source(source(test=np.array([0, 1, 2])), Dataset(val=0.1, test=0.2))
    assert [len(only_val[name].indices) for name in ("train", "val", "test")] == [90, 10, 3]
    only_test = split_source(source(val=np.array([0, 1, 2])), Dataset(val=0.1, test=0.2))
    assert [len(only_test[name].indices) for name in ("train", "val", "test")] == [80, 3, 20]


def test_val_is_drawn_from_what_the_test_leaves() -> None:
    """By class, of those images; so another size of val leaves the test as it was."""
    one, other = (split_source(source(), Dataset(val=val, test=20)) for val in (10, 30))
    assert one["test"].indices.tolist() == other["test"].indices.tolist()
    assert other["val"].per_class(3) == pytest.approx([30 * n / 100 for n in COUNTS], abs=1)


@pytest.mark.parametrize(("wanted", "total", "images"), [(7, 100, 7), (0.25, 10, 2), (0.26, 10, 3), (0.01, 10, 1)])
def test_an_amount_is_a_number_or_a_share(wanted: int | float, total: int, images: int) -> None:
    assert count_of(wanted, total) == images


def test_val_and_test_must_leave_an_image_for_training() -> None:
    with pytest.raises(UserError, match=r"^dataset\.val \+ dataset\.test: 100 of 100 images leave none"):
        split_source(source(), Dataset(val=40, test=60))
    with pytest.raises(UserError, match=r"^dataset\.val: 101 of 100 images leave none"):
        split_source(source(test=np.array([0])), Dataset(val=101))
    pair = np.zeros(2, np.int64)
    parts = {"train": pair, "test": pair}
    raw = SourceData.from_splits({name: images(2) for name in parts}, parts, ["ant"], [])
    assert len(split_source(raw, Dataset(val=1))["train"].indices) == 1


def test_a_class_without_an_image_for_training_is_named() -> None:
    labels = np.array([0] * 50 + [1] * 49 + [2])
    with pytest.raises(UserError, match=r"^class 'cat': none of its 1 images is left .* ask for less in dataset\.val"):
        split_source(source(labels, test=np.array([0])), Dataset(val=60))  # shares 30, 29.4 and 0.6
    with pytest.raises(UserError, match=r"^class 'cat': none of its 0 images is left .* add images, or leave it out$"):
        split_source(source(labels[:-1], test=np.array([0]), val=np.array([1])), Dataset())


def test_all_of_a_class_may_be_asked_for() -> None:
    assert np.bincount(LABELS[count_per_class(LABELS, 10, 0, CLASSES, "x")]).tolist() == [10, 10, 10]


def test_empty_sets_and_classes() -> None:
    none = np.zeros(0, np.int64)
    assert stratified(none, 0, 0).tolist() == [] and fraction_per_class(none, 0.5, 0).tolist() == []
    gap = np.array([0, 0, 2, 2])  # there is no 1
    assert np.bincount(gap[fraction_per_class(gap, 0.5, 0)], minlength=3).tolist() == [1, 0, 1]

"""Stratified draws."""

import itertools
from collections import Counter

import numpy as np
import pytest

from iakd.config import Dataset
from iakd.data.source_data import SourceData
from iakd.data.splits import count_per_class, fraction_per_class, split_source, stratified
from iakd.errors import UserError

COUNTS = [170, 3, 90, 41, 1, 200, 7]
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS)).astype(np.int64)


@pytest.mark.parametrize("n", [0, 1, 5, 100, 333, len(LABELS) - 1, len(LABELS)])
def test_every_class_gives_its_share_within_one_image(n: int) -> None:
    drawn = stratified(LABELS, n, seed=3)
    assert drawn.dtype == np.int64 and len(drawn) == len(set(drawn.tolist())) == n
    assert (np.diff(drawn) > 0).all()
    shares = n * np.array(COUNTS) / len(LABELS)
    got = np.bincount(LABELS[drawn], minlength=len(COUNTS))
    assert (np.abs(got - shares) < 1).all()


def test_left_over_places_go_to_the_largest_remainders() -> None:
    labels = np.repeat(np.arange(3), [50, 30, 20]).astype(np.int64)
    assert np.bincount(labels[stratified(labels, 11, 0)]).tolist() == [6, 3, 2]  # shares 5.5, 3.3, 2.2


def test_the_seed_fixes_the_draw() -> None:
    assert stratified(LABELS, 100, 5).tolist() == stratified(LABELS, 100, 5).tolist()
    assert stratified(LABELS, 100, 5).tolist() != stratified(LABELS, 100, 6).tolist()
    assert stratified(np.repeat([0, 1], 6), 4, 0).tolist() == [2, 3, 8, 11]  # the same in every release


def test_every_image_is_as_likely_and_ties_are_settled_by_lot() -> None:
    labels = np.repeat(np.arange(4), 5).astype(np.int64)
    draws = 4000
    hits = Counter(i for seed in range(draws) for i in stratified(labels, 2, seed).tolist())
    expected = draws * 2 / len(labels)
    chi_square = sum((hits[i] - expected) ** 2 / expected for i in range(len(labels)))
    assert chi_square < 43.8  # 19 degrees of freedom: exceeded once in a thousand


def test_more_than_there_are_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"^distill\.transfer: 513 images .* 512"):
        stratified(LABELS, len(LABELS) + 1, 0, "distill.transfer")
    with pytest.raises(UserError):
        stratified(np.zeros(0, dtype=np.int64), 1, 0)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99, 1.0])
def test_a_share_of_each_class_is_rounded_and_leaves_at_least_one_image(share: float) -> None:
    drawn = fraction_per_class(LABELS, share, 3)
    assert (np.diff(drawn) > 0).all() and drawn.dtype == np.int64
    assert np.bincount(LABELS[drawn]).tolist() == [max(1, round(share * count)) for count in COUNTS]


def test_few_images_of_each_class_are_nested_and_drawn_by_the_seed() -> None:
    names = [f"c{i}" for i in range(len(COUNTS))]
    sets = [set(fraction_per_class(LABELS, share, 3).tolist()) for share in (0.01, 0.02, 0.1, 0.35, 0.36, 0.9, 1.0)]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(sets))
    assert len(sets[-1]) == len(LABELS)
    many = LABELS[np.isin(LABELS, (0, 2, 5))]
    labels = np.searchsorted([0, 2, 5], many)
    one, five = (set(count_per_class(labels, n, 3, names[:3], "here").tolist()) for n in (1, 5))
    assert one < five <= set(fraction_per_class(labels, 0.1, 3).tolist())
    assert np.bincount(labels[sorted(five)]).tolist() == [5, 5, 5]
    assert five != set(count_per_class(labels, 5, 4, names[:3], "here").tolist())
    assert count_per_class(np.repeat([0, 1], 6), 2, 0, ["a", "b"], "here").tolist() == [2, 3, 8, 11]  # in every release


def test_more_of_each_class_than_there_are_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"^x: 3 images of each class asked for, but 'e' has 1 for training; ask for"):
        count_per_class(LABELS, 3, 0, list("abcdefg"), "x")


def test_few_shot_settings_thin_out_the_training_part_alone() -> None:
    labels = LABELS[np.isin(LABELS, (0, 2, 5))] // 2
    raw = SourceData(np.zeros((len(labels), 1, 2, 2), np.uint8), labels, None, None, ["a", "b", "c"])
    everything = split_source(raw, Dataset(val=0.1, test=0.2))
    for settings, counts in (
        ({"train_fraction": 0.1}, [round(0.1 * n) for n in everything["train"].per_class(3)]),
        ({"images_per_class": 4}, [4, 4, 4]),
    ):
        few = split_source(raw, Dataset.model_validate({"val": 0.1, "test": 0.2, **settings}))
        assert few["train"].per_class(3) == counts
        assert set(few["train"].indices.tolist()) < set(everything["train"].indices.tolist())
        for name in ("val", "test"):
            assert few[name].indices.tolist() == everything[name].indices.tolist()
        other = split_source(raw, Dataset.model_validate({"val": 0.1, "test": 0.2, "split_seed": 1, **settings}))
        assert few["train"].indices.tolist() != other["train"].indices.tolist()
    with pytest.raises(UserError, match=r"^dataset\.images_per_class: 64 images .* but 'b' has 63 for training"):
        split_source(raw, Dataset(val=0.1, test=0.2, images_per_class=64))

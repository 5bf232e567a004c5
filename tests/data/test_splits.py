"""Stratified draws."""

from collections import Counter

import numpy as np
import pytest

from iakd.data.splits import stratified
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

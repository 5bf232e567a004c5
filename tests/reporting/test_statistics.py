"""Means, paired intervals and Holm's correction against slow references and numbers computed by hand."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.special import stdtrit

from iakd.reporting.statistics import (
    Errors,
    PairedDifference,
    holm,
    judge,
    paired_difference,
    seed_mean,
)

N = 200  # test images


def right(*images: int, wrong: bool = False) -> np.ndarray:
    """A model that is right on these images only, or wrong on them only."""
    correct = np.full(N, wrong)
    correct[list(images)] = not wrong
    return correct


def models(rng: np.random.Generator, seeds: int, images: int, accuracy: float) -> dict[int, np.ndarray]:
    """Models that mostly find the same images hard."""
    hard = np.random.default_rng(9).standard_normal(images)
    level = np.quantile(hard, accuracy)
    return {
        seed: hard + 0.5 * rng.standard_normal(images) < level + 0.1 * rng.standard_normal() for seed in range(seeds)
    }


def slow_half_width(d: np.ndarray, level: float) -> float:
    """Two-way analysis of variance, written out; d (seeds, images)."""
    n, m = d.shape
    of_seed = [sum(row) / m for row in d]
    of_image = [sum(column) / n for column in d.T]
    mean = sum(of_seed) / n
    seeds = sum((x - mean) ** 2 for x in of_seed) / (n - 1) / n
    images = sum(x**2 for x in of_image) / m / m
    rest = sum((d[s, i] - of_seed[s] - of_image[i] + mean) ** 2 for s in range(n) for i in range(m))
    both = rest / ((n - 1) * (m - 1)) / (n * m)
    t_seeds, t_images = stdtrit(n - 1, 1 - level / 2), stdtrit(m - 1, 1 - level / 2)
    together = t_seeds**2 * seeds + t_images**2 * max(images - both, 0)
    return max(together, t_images**2 * images) ** 0.5


def test_mean_and_sample_standard_deviation():
    found = seed_mean([94.0, 95.0, 97.5])
    assert (found.n, found.mean) == (3, 95.5)
    assert found.std == pytest.approx(np.std([94.0, 95.0, 97.5], ddof=1))


def test_one_seed_has_no_standard_deviation():
    assert seed_mean([94.0]).std is None


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
@pytest.mark.parametrize(("seeds", "images"), [(2, 50), (3, 200), (5, 120), (9, 40)])
def test_interval_matches_the_analysis_of_variance(seeds, images, confidence):
    for repetition in range(4):
        rng = np.random.default_rng([seeds, repetition])
        scores, reference = models(rng, seeds, images, 0.9), models(rng, seeds, images, 0.8)
        d = np.array([scores[s].astype(float) - reference[s].astype(float) for s in range(seeds)])
        found = paired_difference(scores, reference, confidence)
        half = 100 * slow_half_width(d, 1 - confidence)
        assert (found.n, found.mean) == (seeds, pytest.approx(100 * d.mean()))
        assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_the_interval_of_confidence_1_minus_p_ends_at_zero(seeds):
    rng = np.random.default_rng(seeds)
    for _ in range(5):
        scores, reference = models(rng, seeds, 300, 0.9), models(rng, seeds, 300, 0.86)
        p = paired_difference(scores, reference, 0.95).p
        found = paired_difference(scores, reference, 1 - p)
        assert min(abs(found.low), abs(found.high)) < 1e-6 < max(abs(found.low), abs(found.high))


def test_two_seeds_with_equal_differences_are_not_certain():
    """91.0 and 92.5 against 90.5 and 92.0 on 200 images: half a point in both seeds, which is one image."""
    scores = {0: right(*range(18), wrong=True), 1: right(*range(15), wrong=True)}
    reference = {0: right(*range(19), wrong=True), 1: right(*range(16), wrong=True)}
    found = paired_difference(scores, reference, 0.95)
    assert found.mean == pytest.approx(0.5) and found.p > 0.1
    assert found.low < -0.1 < 0.9 < found.high
    assert not judge([found], 0.05)[0].significant


def test_two_seeds_are_never_significant():
    found = paired_difference({0: right(), 1: right()}, {0: right(wrong=True), 1: right(wrong=True)}, 0.95)
    assert found.mean == -100 and found.p < 1e-6
    (judged,) = judge([found], 0.05)
    assert not judged.significant and judged.p_adjusted is None


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_differences_have_mcnemars_interval(seeds):
    """Right on 8 images where the reference is wrong, wrong on 2 others: 3 ± t(199) · √10 / 200."""
    scores = dict.fromkeys(range(seeds), right(*range(8), 50))
    reference = dict.fromkeys(range(seeds), right(8, 9, 50))
    half = 1.9719565 * 100 * 10**0.5 / N
    found = paired_difference(scores, reference, 0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3 - half, 3 + half))
    assert not found.excludes_zero


def test_no_difference_at_all():
    same = dict.fromkeys(range(3), right(1, 2))
    found = paired_difference(same, same, 0.95)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1) and not found.excludes_zero


def test_more_seeds_do_not_help_where_the_test_images_decide():
    """The same 16 images in every seed: the test set would have to be larger."""
    few, many = (
        paired_difference(dict.fromkeys(range(n), right(*range(16))), dict.fromkeys(range(n), right()), 0.95)
        for n in (3, 30)
    )
    assert (few.mean, few.low, few.high, few.p) == pytest.approx((many.mean, many.low, many.high, many.p))


def test_the_spread_of_seeds_alone_gives_the_t_interval():
    """Every seed differs on other images: 1, 2 and 3 points, t(2, 97.5 %) = 4.302653, standard error 1/√3."""
    scores = {0: right(0, 1), 1: right(*range(2, 6)), 2: right(*range(6, 12))}
    found = paired_difference(scores, dict.fromkeys(range(3), right()), 0.95)
    t_half = 4.302653 / 3**0.5
    assert (found.low, found.high) == pytest.approx((2 - t_half, 2 + t_half), abs=1e-5)
    assert not found.excludes_zero  # −0.48 to 4.48


def test_only_common_seeds_count():
    found = paired_difference(
        {0: right(1), 1: right(1, 2), 7: right(wrong=True)}, {1: right(), 0: right(), 9: right()}, 0.95
    )
    assert (found.n, found.mean) == (2, 0.75)
    assert paired_difference({0: right()}, {1: right()}, 0.95) is None


def test_pairing_removes_what_is_hard_for_all():
    """Half of the images are hard in one seed and easy in the other, and the method wins the same 30 in each."""
    half, gained = range(100, 200), range(40)
    reference = {seed: right(*half, wrong=bool(seed % 2)) & ~right(*gained) for seed in range(4)}
    scores = {seed: correct | right(*gained) for seed, correct in reference.items()}
    found = paired_difference(scores, reference, 0.95)
    assert found.mean == 20 and found.low > 13


def test_one_seed_is_never_significant():
    found = paired_difference({0: right(wrong=True)}, {0: right()}, 0.95)
    assert (found.mean, found.low, found.high, found.p) == (100.0, None, None, None)
    assert not found.excludes_zero and not judge([found], 0.05)[0].significant


def test_exchanged_methods():
    rng = np.random.default_rng(1)
    scores, reference = models(rng, 4, 100, 0.9), models(rng, 4, 100, 0.8)
    found, other = paired_difference(scores, reference, 0.9), paired_difference(reference, scores, 0.9)
    turned = found.reversed()
    assert (turned.mean, turned.low, turned.high, turned.p) == pytest.approx(
        (other.mean, other.low, other.high, other.p)
    )
    assert paired_difference({0: right(1)}, {0: right()}, 0.9).reversed().mean == -0.5


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("level", [0.05, 0.001])
def test_wide_enough_whatever_part_of_the_variance_is_the_seeds(seeds, share, level):
    """Normal errors of which `share` is estimated from the seeds and the rest known from the images."""
    rng = np.random.default_rng([seeds, round(10 * share)])
    trials = 200_000
    estimated = share * rng.chisquare(seeds - 1, trials) / (seeds - 1)
    both = np.full(
        trials, share / 2
    )  # as large as it gets: chance of images in trainings, none of trainings as a whole
    found = Errors(estimated, both + 1 - share, both, (seeds - 1, 10_000))
    misses = np.mean(np.abs(rng.standard_normal(trials)) > found.half_width(level))
    assert misses <= level + 4 * (level / trials) ** 0.5


def test_scipy_is_imported_only_for_an_interval():
    code = "import sys, iakd.reporting.results; print('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def difference(p: float | None, n: int = 3) -> PairedDifference:
    return PairedDifference(n, 1.0, 0.1, 1.9, p)


def test_holm_by_hand():
    # 4 · 0.01, 3 · 0.013 (not less than the one before), 2 · 0.03, 1 · 0.04 (not less than the one before)
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_differences_are_judged_together():
    judged = judge([difference(p) for p in (0.03, 0.01, 0.04, 0.013)], 0.05)
    assert [one.significant for one in judged] == [False, True, False, True]
    assert [one.significant for one in judge([difference(0.05)], 0.05)] == [True]  # at the level
    assert [one.significant for one in judge([difference(0.03)] * 2, 0.05)] == [False] * 2


def test_differences_of_too_few_seeds_do_not_count():
    judged = judge([difference(0.03), difference(0.001, n=2), difference(None, n=1)], 0.05)
    assert [(one.significant, one.p_adjusted) for one in judged] == [(True, 0.03), (False, None), (False, None)]

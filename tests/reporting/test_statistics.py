"""Means, paired intervals and Holm's correction against their formulas and against numbers computed by hand."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from iakd.reporting.statistics import holm_rejections, paired_difference, seed_mean


def test_mean_and_sample_standard_deviation():
    found = seed_mean([94.0, 95.0, 97.5])
    assert (found.n, found.mean) == (3, 95.5)
    assert found.std == pytest.approx(np.std([94.0, 95.0, 97.5], ddof=1))


def test_one_seed_has_no_standard_deviation():
    assert seed_mean([94.0]).std is None


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_interval_and_p_value_match_the_formulas(n, confidence):
    """Student's t written out: mean ± t(n − 1)·s/√n, and twice the tail beyond |mean|/(s/√n)."""
    rng = np.random.default_rng(n)
    for scale in (1e-3, 1.0, 30.0):
        scores, reference = rng.normal(90, scale, n), rng.normal(89.9, scale, n)
        found = paired_difference(dict(enumerate(scores)), dict(enumerate(reference)), confidence)
        difference = scores - reference
        error = difference.std(ddof=1) / n**0.5
        half = stdtrit(n - 1, (1 + confidence) / 2) * error
        mean = difference.mean()
        assert (found.n, found.mean) == (n, pytest.approx(mean, abs=1e-12))
        assert (found.low, found.high) == pytest.approx((mean - half, mean + half), rel=1e-12, abs=1e-12)
        assert found.p == pytest.approx(2 * stdtr(n - 1, -abs(mean) / error), rel=1e-9)


def test_differences_that_are_equal_but_for_rounding_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_difference({0: 0.1 + 0.2, 1: 1.3}, {0: 0.0, 1: 1.0}, 0.95)
    assert found.significant and found.low == pytest.approx(0.3) and found.high == pytest.approx(0.3)


def test_scipy_stats_is_imported_only_for_an_interval():
    code = "import sys, iakd.reporting.results; print('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_interval_by_hand():
    # differences 1, 2, 3: standard error 1/√3, t(2, 97.5 %) = 4.302653
    found = paired_difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0}, 0.95)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    assert not found.significant  # −0.48 to 4.48


def test_only_common_seeds_count():
    found = paired_difference({0: 1.0, 1: 2.0, 7: 100.0}, {1: 1.0, 0: 0.5, 9: 0.0}, 0.95)
    assert (found.n, found.mean) == (2, 0.75)
    assert paired_difference({0: 1.0}, {1: 1.0}, 0.95) is None


def test_pairing_removes_the_spread_between_seeds():
    reference = {0: 80.0, 1: 90.0, 2: 95.0}
    gains = (1.0, 1.1, 0.9)
    scores = {seed: value + gain for (seed, value), gain in zip(reference.items(), gains, strict=True)}
    found = paired_difference(scores, reference, 0.95)
    assert found.significant and found.low > 0.7


def test_one_seed_is_never_significant():
    found = paired_difference({0: 99.0}, {0: 1.0}, 0.95)
    assert (found.mean, found.low, found.high, found.p) == (98.0, None, None, None)
    assert not found.significant


def test_equal_differences_have_no_width():
    same = paired_difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}, 0.95)
    assert (same.low, same.high, same.p) == (0.5, 0.5, 0.0) and same.significant
    zero = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, 0.95)
    assert (zero.low, zero.high, zero.p) == (0.0, 0.0, 1.0) and not zero.significant


def test_a_loss_can_be_significant():
    assert paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 5.0, 1: 6.1, 2: 6.9}, 0.95).significant


def test_holm_by_hand():
    # sorted 0.01 ≤ 0.05/4, 0.013 ≤ 0.05/3, 0.03 > 0.05/2: the rest is kept, though 0.04 ≤ 0.05/1
    assert holm_rejections([0.03, 0.01, 0.04, 0.013], 0.05) == [False, True, False, True]
    assert holm_rejections([], 0.05) == []


def test_a_p_value_at_the_level_is_rejected():
    assert holm_rejections([0.05], 0.05) == [True]
    assert holm_rejections([0.025, 0.05], 0.05) == [True, True]


def test_holm_rejects_what_bonferroni_rejects_and_no_larger_p_value_before_a_smaller_one():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20):
        for _ in range(50):
            p_values = rng.uniform(0, 0.1, count)
            rejected = np.array(holm_rejections(p_values.tolist(), 0.05))
            assert rejected[p_values <= 0.05 / count].all()
            if rejected.any() and not rejected.all():
                assert p_values[rejected].max() <= p_values[~rejected].min()
            assert not rejected[p_values > 0.05].any()

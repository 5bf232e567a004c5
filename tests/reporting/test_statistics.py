"""Means, paired intervals and Holm's correction against scipy and against numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from iakd.reporting.statistics import holm, mean, paired


def test_mean_and_sample_standard_deviation():
    found = mean([94.0, 95.0, 97.5])
    assert (found.n, found.mean) == (3, 95.5)
    assert found.std == pytest.approx(np.std([94.0, 95.0, 97.5], ddof=1))


def test_one_seed_has_no_standard_deviation():
    assert mean([94.0]).std is None


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_interval_is_that_of_the_paired_t_test(confidence):
    rng = np.random.default_rng(1)
    a, b = rng.normal(95, 1, 5), rng.normal(94, 1, 5)
    found = paired(dict(enumerate(a)), dict(enumerate(b)), confidence)
    reference = stats.ttest_rel(a, b)
    low, high = reference.confidence_interval(confidence)
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(reference.pvalue)


def test_interval_by_hand():
    # differences 1, 2, 3: standard error 1/√3, t(2, 97.5 %) = 4.302653
    found = paired({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0}, 0.95)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    assert not found.certain  # −0.48 to 4.48
    assert found.judgement == "not certain"


def test_only_common_seeds_count():
    found = paired({0: 1.0, 1: 2.0, 7: 100.0}, {1: 1.0, 0: 0.5, 9: 0.0}, 0.95)
    assert (found.n, found.mean) == (2, 0.75)
    assert paired({0: 1.0}, {1: 1.0}, 0.95) is None


def test_pairing_finds_what_unpaired_spread_would_hide():
    theirs = {0: 80.0, 1: 90.0, 2: 95.0}
    found = paired(
        {seed: value + gain for (seed, value), gain in zip(theirs.items(), (1.0, 1.1, 0.9), strict=True)}, theirs, 0.95
    )
    assert found.certain and found.low > 0.7


def test_one_seed_is_never_certain():
    found = paired({0: 99.0}, {0: 1.0}, 0.95)
    assert (found.mean, found.low, found.high, found.p) == (98.0, None, None, None)
    assert not found.certain and found.judgement == "one seed only"


def test_equal_differences_have_no_width():
    same = paired({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}, 0.95)
    assert (same.low, same.high, same.p) == (0.5, 0.5, 0.0) and same.certain
    none = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, 0.95)
    assert (none.low, none.high, none.p) == (0.0, 0.0, 1.0) and not none.certain


def test_a_loss_can_be_certain():
    assert paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 5.0, 1: 6.1, 2: 6.9}, 0.95).certain


def test_holm_by_hand():
    # sorted 0.01 ≤ 0.05/4, 0.013 ≤ 0.05/3, 0.03 > 0.05/2: the rest stands, though 0.04 ≤ 0.05/1
    assert holm([0.03, 0.01, 0.04, 0.013], 0.05) == [False, True, False, True]
    assert holm([], 0.05) == []

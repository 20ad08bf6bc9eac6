"""Intervals of rates over clusters: known limits, invariants, coverage, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from rconv.lab.intervals import rate_interval


def test_a_rate_of_one_counts_the_clusters_only():
    # Clopper and Pearson's lower limit for k of k is (α/2)^(1/k).
    low, high = rate_interval([20] * 10, [20] * 10)
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 10))
    assert rate_interval([0] * 10, [20] * 10) == pytest.approx((0, 1 - low))


def test_clusters_that_agree_count_each_draw_but_for_students_quantile():
    # Equal rates in each cluster: no variance between them, so all 200 draws count.
    low, high = rate_interval([10] * 10, [20] * 10)
    plain = binomtest(100, 200).proportion_ci()
    assert low < plain.low < plain.high < high
    assert high - low < 1.25 * (plain.high - plain.low)


def test_clusters_that_are_all_or_nothing_are_their_own_sample():
    # Five seeds of ten succeed with every image: no better known than five of ten coin flips.
    low, high = rate_interval([20] * 5 + [0] * 5, [20] * 10)
    flips = binomtest(5, 10).proportion_ci()
    assert low <= flips.low and flips.high <= high


COUNTS = st.lists(
    st.integers(1, 30).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    min_size=1,
    max_size=8,
)


@given(COUNTS)
def test_the_rate_lies_inside_and_the_mirror_image_outside(pairs):
    successes, totals = zip(*pairs, strict=True)
    low, high = rate_interval(successes, totals)
    rate = sum(successes) / sum(totals)
    assert 0 <= low <= rate + 1e-9 and rate - 1e-9 <= high <= 1
    failures = [n - s for s, n in pairs]
    assert rate_interval(failures, totals) == pytest.approx((1 - high, 1 - low), abs=1e-6)
    wider = rate_interval(successes, totals, level=0.99)
    assert wider[0] <= low + 1e-9 and high - 1e-9 <= wider[1]


def test_it_covers_the_truth_where_independent_draws_would_not():
    # Seeds whose own rate is 0.2 or 0.9: a mean of 0.55, ten seeds of twenty images, 400 times.
    generator = torch.Generator().manual_seed(0)
    own = torch.where(torch.rand(400, 10, 1, generator=generator) < 0.5, 0.2, 0.9)
    counts = (torch.rand(400, 10, 20, generator=generator) < own).sum(dim=2).tolist()
    clustered = [rate_interval(c, [20] * 10) for c in counts]
    naive = [binomtest(sum(c), 200).proportion_ci() for c in counts]
    assert sum(low <= 0.55 <= high for low, high in clustered) >= 0.93 * 400
    assert sum(low <= 0.55 <= high for low, high in naive) < 0.7 * 400


def test_one_cluster_tells_nothing_of_others():
    assert rate_interval([3], [5]) == (0.0, 1.0)
    low, high = rate_interval([5], [5])
    assert (low, high) == pytest.approx((0.025, 1))


@pytest.mark.parametrize(
    ("successes", "totals", "level", "why"),
    [
        ([], [], 0.95, "one cluster at least"),
        ([1], [1, 2], 0.95, "one number for each"),
        ([0], [0], 0.95, "a draw at least"),
        ([3], [2], 0.95, "no more successes"),
        ([-1], [2], 0.95, "no more successes"),
        ([1], [2], 95, "between 0 and 1"),
        ([1], [2], math.nan, "between 0 and 1"),
    ],
)
def test_refusals(successes, totals, level, why):
    with pytest.raises(ValueError, match=why):
        rate_interval(successes, totals, level)

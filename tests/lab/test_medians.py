"""Medians over clusters: known orders, exact levels, and what is not a number."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rconv.lab.intervals import clustered_median


def test_five_seeds_are_held_by_their_extremes():
    found = clustered_median([3, 1, 5, 2, 4], "abcde")
    assert (found.value, found.low, found.high) == (3, 1, 5)
    assert found.level == 1 - 2 / 2**5 == 0.9375
    assert (found.count, found.clusters) == (5, 5)


def test_ten_seeds_leave_out_the_extremes():
    found = clustered_median(range(1, 11), range(10))
    assert (found.low, found.high) == (2, 9)
    assert found.level == 1 - 2 * (1 + 10) / 2**10


def test_a_cluster_counts_once_however_many_images_it_has():
    values = [0, 0, 0, 0, 0, 10, 20, 21, 22]
    clusters = [1, 1, 1, 1, 1, 2, 3, 3, 3]
    found = clustered_median(values, clusters)
    assert (found.value, found.low, found.high) == (10, 0, 21)
    assert (found.count, found.clusters) == (9, 3)
    assert found.level == 0.75


def test_one_cluster_says_nothing_of_others():
    found = clustered_median([1, 2, 6], [0, 0, 0])
    assert (found.value, found.low, found.high, found.level) == (2, 2, 2, 0)


def test_images_that_are_no_number_are_the_worst():
    found = clustered_median([-math.inf, -math.inf, 10, 20, 30], range(5))
    assert (found.value, found.low, found.high) == (10, -math.inf, 30)


@given(st.lists(st.tuples(st.floats(-100, 300), st.integers(0, 4)), min_size=1), st.randoms())
def test_the_order_of_the_images_does_not_matter(pairs, generator):
    shuffled = generator.sample(pairs, len(pairs))
    assert clustered_median(*zip(*pairs, strict=True)) == clustered_median(
        *zip(*shuffled, strict=True)
    )


@pytest.mark.parametrize("seeds", [5, 8, 11])
def test_the_interval_covers_as_often_as_it_says(seeds):
    """Skew clusters of known median, drawn again and again."""
    generator = random.Random(0)
    held = 0
    for _ in range(2000):
        values = [generator.expovariate(1) for _ in range(seeds)]
        found = clustered_median(values, range(seeds))
        held += found.low <= math.log(2) <= found.high
    assert held / 2000 == pytest.approx(found.level, abs=0.02)
    assert found.level >= 0.9


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], [1, 2])])
def test_refusals(values, clusters):
    with pytest.raises(ValueError, match="give each value its cluster"):
        clustered_median(values, clusters)

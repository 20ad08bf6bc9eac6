"""How certain a rate or a median is where several images share their network.

Two images attacked through one network are no two independent draws: most of the luck is in the
network. So the seeds are the sample, and the images within a seed count for as much as they
differ.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

from scipy.special import betaincinv, stdtrit

LEVEL = 0.95
"""Confidence of the interval of a rate where none is asked for."""

MEDIAN_LEVEL = 0.9
"""Confidence asked for of a median; five seeds give 93.75 %, and four cannot give it."""


@dataclass(frozen=True)
class Median:
    """A median over clusters, and where the true one lies.

    `value` is the median of the clusters' medians, between `low` and `high` with the confidence
    `level`, 0 for one cluster only. Minus infinity is a value as any other: an image that is NaN
    counts as the worst. `count` values come from so many `clusters`.
    """

    value: float
    low: float
    high: float
    level: float
    count: int
    clusters: int


def rate_interval(
    successes: Sequence[int], totals: Sequence[int], level: float = LEVEL
) -> tuple[float, float]:
    r"""Confidence interval of a rate over clusters: Clopper and Pearson's, for the effective count.

    The variance of the rate :math:`p` is estimated between the k clusters (linearised ratio),
    :math:`v = \frac{k}{k-1} \sum_c (s_c - p n_c)^2 / n^2`, and n is replaced by
    :math:`n^* = p(1-p)/v`, which is at most n, times the square of the ratio of Student's
    quantiles with n - 1 and k - 1 degrees of freedom, as Korn and Graubard do. Where every draw
    came out the same, the clusters say nothing about each other and :math:`n^* = k`: the images of
    one cluster then count as a single draw, which is the careful end.

    Takes the successes and the draws of each cluster, at least one draw; with one draw per cluster
    and rates strictly between 0 and 1 this is close to the interval of independent draws. Returns
    the lower and upper limit, in [0, 1], around the pooled rate; of a single cluster whose draws
    differ, (0, 1).

    References
    ----------
    E. L. Korn, B. I. Graubard, "Confidence intervals for proportions with small expected number
    of positive counts estimated from survey data", Survey Methodology 24 (1998), 193-201.
    """
    _check(successes, totals, level)
    count, clusters = sum(totals), len(totals)
    rate = sum(successes) / count
    if rate in (0, 1):
        effective = float(clusters)
    elif clusters == 1:
        return 0.0, 1.0
    else:
        pairs = zip(successes, totals, strict=True)
        spread = sum((s - rate * n) ** 2 for s, n in pairs) / count**2 * clusters / (clusters - 1)
        effective = min(count, rate * (1 - rate) / spread) if spread else float(count)
        tail = (1 + level) / 2
        effective *= float(stdtrit(count - 1, tail) / stdtrit(clusters - 1, tail)) ** 2
    won, tail = rate * effective, (1 - level) / 2
    low = betaincinv(won, effective - won + 1, tail) if won > 0 else 0.0
    high = betaincinv(won + 1, effective - won, 1 - tail) if won < effective else 1.0
    return float(low), float(high)


def _check(successes: Sequence[int], totals: Sequence[int], level: float) -> None:
    if not len(successes) == len(totals) > 0:
        raise ValueError(
            f"{len(successes)} successes for {len(totals)} clusters: give one number for each, "
            "and one cluster at least"
        )
    if min(totals) < 1 or not all(0 <= s <= n for s, n in zip(successes, totals, strict=True)):
        raise ValueError("each cluster needs a draw at least, and no more successes than draws")
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}: it must lie between 0 and 1, 0.95 for 95 %")


def clustered_median(values: Sequence[float], clusters: Sequence[Hashable]) -> Median:
    r"""Median of the clusters' medians, with its interval by order statistics.

    Of k independent clusters, the j-th smallest median lies above the median of their distribution
    only if fewer than j of the k lie below it: with probability :math:`2^{-k} \sum_{i<j}
    \binom{k}{i}`, whatever the distribution. The interval from the j-th smallest to the j-th
    largest misses it with twice that; j is the largest one that keeps `MEDIAN_LEVEL`, or 1. No
    spread is estimated and no shape assumed, so that runaway images, of -90 dB, and images that are
    no number do no harm. Each value belongs to the cluster of its place, such as the seed of its
    model.

    References
    ----------
    W. R. Thompson, "On confidence ranges for the median and other expectation distributions for
    populations of unknown distribution form", Annals of Mathematical Statistics 7 (1936), 122-128.
    """
    if not len(values) == len(clusters) > 0:
        raise ValueError(
            f"{len(values)} values of {len(clusters)} images: give each value its cluster, and one "
            "at least"
        )
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    medians, k = sorted(map(median, groups.values())), len(groups)
    rank = max([j for j in range(1, (k + 1) // 2 + 1) if _level(k, j) >= MEDIAN_LEVEL], default=1)
    return Median(
        median(medians), medians[rank - 1], medians[-rank], _level(k, rank), len(values), k
    )


def _level(clusters: int, rank: int) -> float:
    """Probability that the interval from the rank-th smallest to the rank-th largest holds it."""
    return 1 - 2 * sum(comb(clusters, i) for i in range(rank)) / 2**clusters

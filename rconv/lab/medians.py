"""Medians of images that share their network, with an interval that the networks decide.

Two images attacked through one network are no two independent draws. So each network, a seed of
the model, gives one number, the median of its images, and the interval comes from these.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

LEVEL = 0.9
"""Confidence asked for; five seeds give 93.75 %, and four cannot give it."""


@dataclass(frozen=True)
class Median:
    """A median over clusters, and where the true one lies.

    Parameters
    ----------
    value, low, high : float
        Median of the clusters' medians, and the interval around it. Minus infinity is a value as
        any other: an image that is no number counts as the worst.
    level : float
        Confidence of the interval, 0 where there is one cluster only.
    count, clusters : int
        Values, and clusters that they come from.
    """

    value: float
    low: float
    high: float
    level: float
    count: int
    clusters: int


def clustered_median(values: Sequence[float], clusters: Sequence[Hashable]) -> Median:
    r"""Median of the clusters' medians, with its interval by order statistics.

    Of k independent clusters, the j-th smallest median lies above the median of their
    distribution only if fewer than j of the k lie below it: with probability
    :math:`2^{-k} \sum_{i<j} \binom{k}{i}`, whatever the distribution. The interval from the j-th
    smallest to the j-th largest misses it with twice that; j is the largest one that keeps `LEVEL`,
    or 1. No spread is estimated and no shape assumed, so that runaway images, of -90 dB, and images
    that are no number do no harm.

    Parameters
    ----------
    values : sequence of float
        One per image.
    clusters : sequence
        The cluster of each, such as the seed of its model.

    Returns
    -------
    Median

    Raises
    ------
    ValueError
        If there is no value, or the lengths differ.

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
    own, k = sorted(map(median, groups.values())), len(groups)
    rank = max([j for j in range(1, (k + 1) // 2 + 1) if _level(k, j) >= LEVEL], default=1)
    return Median(median(own), own[rank - 1], own[-rank], _level(k, rank), len(values), k)


def _level(clusters: int, rank: int) -> float:
    """Probability that the interval from the rank-th smallest to the rank-th largest holds it."""
    return 1 - 2 * sum(comb(clusters, i) for i in range(rank)) / 2**clusters

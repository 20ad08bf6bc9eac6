"""Which labels a batch has, and how often each: what the bias gradient leaves possible."""

from collections.abc import Iterator
from itertools import combinations_with_replacement, islice

import torch
from torch import Tensor

MOST = 60
"""Of the label counts that are possible, so many are looked at."""


def label_counts(bias_gradient: Tensor, batch: int, noise: float) -> list[Tensor]:
    """Possible label counts, the likeliest first.

    The gradient by the bias, summed over the batch, is at class k the sum of the probabilities
    of k less the number of samples with this label: Σ_b p_b[k] - m_k. As probabilities are
    positive, m_k is above its negative. Mostly Σ_b p_b[k] < 1, as everywhere in a network that
    is not trained as long as B < K, and the next whole number is m_k itself. Where these add up
    to less than B, some class has a sum of 1 or more. In an untrained network it is one whose
    sum would else be far too small, in a trained one it may be the largest: in turn.

    Parameters
    ----------
    bias_gradient : Tensor
        (K,), the sum over the samples.
    batch : int
        B.
    noise : float
        Standard deviation of its errors.

    Returns
    -------
    list of Tensor
        (K,) int64 each, of sum B; none where no counts fit.
    """
    # The probability of a saturated class is nothing beside the noise.
    least = (-bias_gradient - 10 * noise - 1e-12).ceil().clamp(min=0).long()
    missing = batch - int(least.sum())
    if missing < 0:
        return []
    order = (bias_gradient + least).argsort().tolist()
    likeliest = [order[-1 - i // 2 if i % 2 else i // 2] for i in range(len(order))]
    return list(islice(_filled(least, missing, likeliest), MOST))


def _filled(least: Tensor, missing: int, likeliest: list[int]) -> Iterator[Tensor]:
    for more in combinations_with_replacement(likeliest, missing):
        yield least + torch.bincount(torch.tensor(more, dtype=torch.int64), minlength=len(least))

"""Labels, from the signs of the logit gradients (iDLG, arXiv 2001.02610), and how often each."""

from collections.abc import Iterator
from itertools import combinations_with_replacement, islice

import torch
from torch import Tensor, nn

from rconv.model.heads import Head

MOST = 60
"""Of the label counts that are possible, so many are looked at."""


def own_logits(model: nn.Module, head: Head, v: Tensor) -> Tensor:
    """Logits V v + c (N, K) of a head that is the last layer and has the input v (N, n)."""
    logits = v @ head.weight.T
    return logits + model.get_parameter(f"{head.name}.bias").detach() if head.has_bias else logits


def inferred_labels(logit_gradient: Tensor, logits: Tensor | None = None) -> Tensor:
    """The class whose logit a step of cross-entropy pushes up, (N,); -1 where all entries are zero.

    The derivative by the logits (N, K), softmax minus one-hot, is negative at the label and nowhere
    else. Where rounding has left no negative entry, the softmax is saturated at the right class,
    and the label is the likeliest one; without logits, that of the smallest entry. A single logit
    is that of class 1. The gradient may have any positive factor.
    """
    if logit_gradient.shape[1] == 1:
        labels = (logit_gradient[:, 0] < 0).long()
    else:
        labels = logit_gradient.argmin(dim=1)
        if logits is not None:
            negative = (logit_gradient < 0).any(dim=1)
            labels = torch.where(negative, labels, logits.argmax(dim=1))
    return labels.where(logit_gradient.any(dim=1), -1)


def label_counts(bias_gradient: Tensor, batch: int, noise: float) -> list[Tensor]:
    """Possible label counts (K,) of a batch of B samples, the likeliest first; none where none fit.

    The gradient by the bias (K,), summed over the batch, is at class k the sum of the probabilities
    of k less the number of samples with this label: Σ_b p_b[k] - m_k. As probabilities are
    positive, m_k is above its negative. Mostly Σ_b p_b[k] < 1, as everywhere in a network that is
    not trained as long as B < K, and the next whole number is m_k itself. Where these add up to
    less than B, some class has a sum of 1 or more. In an untrained network it is one whose sum
    would else be far too small, in a trained one it may be the largest: in turn. `noise` is the
    standard deviation of the gradient's errors.
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

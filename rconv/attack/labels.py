"""The label, from the sign of the logit gradient (iDLG, arXiv 2001.02610)."""

import torch
from torch import Tensor, nn

from rconv.model.ends import Head


def own_logits(model: nn.Module, head: Head, v: Tensor) -> Tensor:
    """Logits V v + c of a head that is the last layer, without a forward pass.

    Parameters
    ----------
    model : Module
        The shared model, float64.
    head : Head
        Its first and last Linear.
    v : Tensor
        (N, n), the head's input.

    Returns
    -------
    Tensor
        (N, K).
    """
    logits = v @ head.weight.T
    return logits + model.get_parameter(f"{head.name}.bias").detach() if head.has_bias else logits


def told_labels(logit_gradient: Tensor, logits: Tensor | None = None) -> Tensor:
    """The class whose logit a step of cross-entropy pushes up.

    The derivative by the logits, softmax minus one-hot, is negative at the label and nowhere
    else. Where rounding has left no negative entry, the softmax is saturated at the right class,
    and the label is the likeliest one; without logits, that of the smallest entry. A single logit
    is that of class 1.

    Parameters
    ----------
    logit_gradient : Tensor
        (N, K), up to a positive factor.
    logits : Tensor, optional
        (N, K).

    Returns
    -------
    Tensor
        (N,), int64; -1 where all entries are zero, which says nothing of the label.
    """
    if logit_gradient.shape[1] == 1:
        labels = (logit_gradient[:, 0] < 0).long()
    else:
        labels = logit_gradient.argmin(dim=1)
        if logits is not None:
            told = (logit_gradient < 0).any(dim=1)
            labels = torch.where(told, labels, logits.argmax(dim=1))
    return labels.where(logit_gradient.any(dim=1), -1)

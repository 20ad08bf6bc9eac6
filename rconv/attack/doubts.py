"""What an attacker may hold against a reconstruction, in words."""

import math
from dataclasses import replace

import torch
from torch import nn

from rconv.attack.report import CLEAR, Reconstruction
from rconv.model.nodes import Head
from rconv.observe.observation import Gradients

SATURATED, SAME = 1e-3, 1e-2
"""The size of the gradients is judged where the softmax's own is above SATURATED, so that its
rounding does not count, and called another where it is off by more than SAME."""

SIGNS = "every entry of the head's gradient has the same size: only signs were sent"


def with_doubts(
    result: Reconstruction,
    head: Head,
    model: nn.Module,
    gradients: Gradients,
    loss: str | None,
) -> Reconstruction:
    """The result with its doubts in words, and with what only an assumption tells.

    Parameters
    ----------
    result : Reconstruction
        With its certificate and expected error.
    head : Head
        Of the network.
    model : Module
        The shared model, float64.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), as observed.
    loss : str or None
        What the clients' loss is stated to be.

    Returns
    -------
    Reconstruction
    """
    assumed = not head.has_bias and head.weight.shape[0] <= 2 and loss is None
    factors = _factors(result, head, model, gradients)
    signs = [bool(((g == 0) | (g.abs() == g.abs().max())).all())
             for g in gradients[f"{head.name}.weight"]]  # fmt: skip
    reasons = tuple(
        SIGNS if signs[i] and result.revealed_noise[i] > 0
        else _reason(result, i, assumed) or _remark(factors[i])
        for i in range(len(signs))
    )  # fmt: skip
    return replace(result, doubts=reasons, assumed=torch.full_like(result.assumed, assumed))


def _factors(
    result: Reconstruction, head: Head, model: nn.Module, gradients: Gradients
) -> list[float]:
    """How many times the gradient of cross-entropy each observed one is; NaN where unknown."""
    if not (head.last and head.has_bias and head.logits and head.weight.shape[0] > 1):
        return [float("nan")] * len(result.images)
    with torch.no_grad():
        expected = torch.softmax(model(result.images), dim=1)
    expected[torch.arange(len(expected)), result.labels] -= 1
    sizes = expected.norm(dim=1)
    ratio = gradients[f"{head.name}.bias"].norm(dim=1) / sizes
    return torch.where(sizes > SATURATED, ratio, torch.nan).tolist()


def _remark(factor: float) -> str:
    """A word on the size of the gradients, which the image does not depend on."""
    if math.isnan(factor) or abs(factor - 1) < SAME:
        return ""
    return f"the gradients are {factor:.3g} times those of cross-entropy: clipped or scaled"


def _reason(result: Reconstruction, i: int, assumed: bool) -> str:
    """Why image i may not be what the client had, or what is odd about its gradients."""
    head = result.layers[0]
    revealed = float(result.revealed_noise[i])
    if int(head.rank[i]) == 0:
        return "the gradients are zero: this step tells nothing"
    if float(head.residual[i]) >= revealed / 100 > 0:
        return (
            f"the head's gradient is no single outer product (residual "
            f"{float(head.residual[i]):.0e}): several images, several steps, or noise"
        )
    short = [layer for layer in result.layers if layer.open[i] > 0]
    if short:
        return f"{short[0].name} has rank {int(short[0].rank[i])} of {short[0].unknowns}"
    if revealed > 0:
        return f"the gradients carry a noise of {revealed:.0e} that was not told"
    if int(result.twins[i]):
        return "another image explains the gradients as well"
    if float(result.expected_error[i]) > CLEAR:
        return f"the noise may have grown to {float(result.expected_error[i]):.0e} of the image"
    if not float(result.gradient_residual[i]) <= CLEAR:
        return f"its gradients are {float(result.gradient_residual[i]):.0e} from the observed ones"
    if assumed:
        return "the head has no bias: the scale rests on the loss being the logistic one"
    return ""

"""What an attacker may hold against a reconstruction, in words."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.attack.label_inference import own_logits
from rconv.attack.report import CLEAR, TWO_LAYERS, LayerReport, Reconstruction
from rconv.attack.systematic import relative_to_contrast
from rconv.linalg.dense import MAX_UNKNOWNS
from rconv.model.heads import Head
from rconv.model.nodes import Network
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

SATURATED, SAME = 1e-3, 1e-2
"""The size of the gradients is judged where the softmax's own is above SATURATED, so that its
rounding does not count, and called another where it is off by more than SAME."""

SEVERAL, REMEDY = "several", "; batch=None reads from the gradients how many images there are"

DOUBLE = 1e-12
"""Relative rounding up to which gradients count as float64."""

UNCHECKED = (
    "a layer that is solved together with its convolution has been checked with exact float64 "
    "gradients only"
)

SIGNS = "every entry of the head's gradient has the same size: only signs were sent"


def with_diagnostics(
    result: Reconstruction,
    network: Network,
    model: nn.Module,
    gradients: Gradients,
    loss: str | None,
    value_range: tuple[float, float],
    *,
    batches: bool = False,
) -> Reconstruction:
    """The result with its diagnostics in words, and with what only an assumption tells.

    Parameters
    ----------
    result : Reconstruction
        With its certificate, its expected error and the diagnostics that are known already.
    network : Network
        The model, as it was read.
    model : Module
        The shared model, float64.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), as observed.
    loss : str or None
        What the clients' loss is stated to be.
    value_range : tuple of float
        Of the pixels.
    batches : bool
        Whether the network permits an attack on several images at once.

    Returns
    -------
    Reconstruction
    """
    result, head = relative_to_contrast(result, value_range), network.head
    known, factors, stated = result.diagnostics, [math.nan] * len(result.images), True
    assumed = torch.zeros_like(result.assumed)
    if isinstance(head, Head):
        stated = head.has_bias or head.weight.shape[0] > 2 or loss is not None
        assumed = _assumed(result, head, stated, value_range)
        factors = _factors(result, head, model, gradients)
    result = replace(result, assumed=result.assumed | assumed)
    short = _short(result)
    sizes = gradients[head.parameters[0]].flatten(1).abs()
    signs = ((sizes == 0) | (sizes == sizes.amax(dim=1, keepdim=True))).all(dim=1)
    signs &= result.revealed_noise > 0
    reasons = []
    for i, own in enumerate(signs.tolist()):
        reason = SIGNS if own else _reason(result, i, short[i], bool(assumed[i]), stated)
        reason = reason or known[i]
        if batches and SEVERAL in reason:
            reason += REMEDY
        reasons.append(reason or _remark(factors[i]))
    return replace(result, diagnostics=tuple(reasons))


def _assumed(
    result: Reconstruction, head: Head, stated: bool, value_range: tuple[float, float]
) -> Tensor:
    """(N,), whether the image rests on what nothing in the gradients tells."""
    # Without a bias the scale follows from the loss, and no noise of its own is known of it. With
    # one logit the head's gradient is an outer product however many images there were.
    assumed = torch.full_like(result.assumed, not stated)
    assumed |= (result.revealed_noise > 0) & (not head.has_bias)
    return assumed | (_outside(result, value_range) & (head.weight.shape[0] == 1))


def with_block_diagnostics(
    result: Reconstruction, network: Network, noise: Noise
) -> Reconstruction:
    """The result, which is assumed where blocks were solved from gradients with any noise.

    Two layers that were solved together are a block, too.

    Parameters
    ----------
    result : Reconstruction
        With its diagnostics.
    network : Network
        The model, as it was read.
    noise : Noise
        What is known of the errors of the gradients as they were sent.

    Returns
    -------
    Reconstruction
    """
    kinds = zip(*(report.constraints for report in result.layers), strict=True)
    blocks = torch.tensor([network.has_blocks or TWO_LAYERS in own for own in kinds])
    float64 = 0 < noise.relative <= DOUBLE  # a declared precision has no relative part
    declared = not float64 or noise.relative_std > 0 or bool(noise.std)
    inexact = blocks.to(result.assumed.device) & ((result.revealed_noise > DOUBLE) | declared)
    each = zip(result.diagnostics, inexact.tolist(), strict=True)
    reasons = tuple(UNCHECKED if own and not reason else reason for reason, own in each)
    return replace(result, assumed=result.assumed | inexact, diagnostics=reasons)


def with_batch_diagnostics(
    result: Reconstruction, value_range: tuple[float, float]
) -> Reconstruction:
    """The images of one batch with their diagnostics in words; what its head told is past doubt.

    Parameters
    ----------
    result : Reconstruction
        With its certificate and expected error.
    value_range : tuple of float
        Of the pixels.

    Returns
    -------
    Reconstruction
    """
    result = relative_to_contrast(result, value_range)
    reasons = (_layers_reason(result, i, own) for i, own in enumerate(_short(result)))
    return replace(result, diagnostics=tuple(reasons))


def _short(result: Reconstruction) -> list[list[LayerReport]]:
    """Of each image the layers that are short of rank."""
    opened = torch.stack([layer.open > 0 for layer in result.layers], dim=1).tolist()
    return [[layer for layer, own in zip(result.layers, row, strict=True) if own]
            for row in opened]  # fmt: skip


def _factors(
    result: Reconstruction, head: Head, model: nn.Module, gradients: Gradients
) -> list[float]:
    """How many times the gradient of cross-entropy each observed one is; NaN where unknown."""
    if not (head.last and head.has_bias and head.logits and head.weight.shape[0] > 1):
        return [float("nan")] * len(result.images)
    # The input of a head that is the last layer is in its report: both ends are its value.
    expected = torch.softmax(own_logits(model, head, result.layers[0].low), dim=1)
    expected[torch.arange(len(expected)), result.labels] -= 1
    sizes = expected.norm(dim=1)
    ratio = gradients[f"{head.name}.bias"].norm(dim=1) / sizes
    return torch.where(sizes > SATURATED, ratio, torch.nan).tolist()


def _remark(factor: float) -> str:
    """A word on the size of the gradients, which the image does not depend on."""
    if math.isnan(factor) or abs(factor - 1) < SAME:
        return ""
    return f"the gradients are {factor:.3g} times those of cross-entropy: clipped or scaled"


def _outside(result: Reconstruction, value_range: tuple[float, float]) -> Tensor:
    """(N,), whether pixels leave their range by more than a hundredth of it."""
    low, high = value_range
    room = CLEAR * (high - low)
    pixels = result.images.flatten(1)
    return (pixels.amin(dim=1) < low - room) | (pixels.amax(dim=1) > high + room)


def _reason(
    result: Reconstruction, i: int, short: list[LayerReport], assumed: bool, stated: bool
) -> str:
    """Why image i may not be what the client had, or what is odd about its gradients."""
    head = result.layers[0]
    revealed = float(result.revealed_noise[i])
    if int(head.rank[i]) == 0:
        return "the gradients are zero: this step tells nothing"
    if not result.unique[i] and float(head.residual[i]) >= revealed / 100 > 0:
        what = "head's gradient is no single outer product"
        if head.constraints[i] == "span":
            what = "convolution's gradient has more rank than its positions have"
        if head.constraints[i] == "embedding":
            what = "position embedding's gradient does not add up to the convolution's"
        return (
            f"the {what} (residual {float(head.residual[i]):.0e}): several images, several steps, "
            "or noise"
        )
    if short and short[0].constraints[i] == "span" and short[0].open[i] == 1:
        return f"nothing tells the factor of what {short[0].name} takes: no bias there or below"
    reason = _layers_reason(result, i, short)
    if reason or not assumed:
        return reason
    if stated:
        return "its pixels leave their range: perhaps an average of several images"
    return "the head has no bias: the scale rests on the loss being the logistic one"


def _layers_reason(result: Reconstruction, i: int, short: list[LayerReport]) -> str:
    """Why image i may not be what the client had, as far as its layers and certificate say."""
    revealed = float(result.revealed_noise[i])
    if short:
        rank, n = int(short[0].rank[i]), short[0].unknowns
        if rank == 0 and short[0].constraints[i] == "block":
            return f"{short[0].name}: no input was found that explains its gradients"
        more = "" if n <= MAX_UNKNOWNS else ", too large for signs and a prior to close it"
        return f"{short[0].name} has rank {rank} of {n}{more}"
    if revealed > 0:
        noise = f"the gradients carry a noise of {revealed:.0e} that was not declared"
        # Several images would have changed this one by its systematic error, at most `CLEAR`.
        return noise if result.unique[i] else f"{noise}, or come from several steps or images"
    if int(result.twins[i]):
        return "another image explains the gradients as well"
    if float(result.expected_error[i]) > CLEAR:
        return f"the noise may have grown to {float(result.expected_error[i]):.0e} of the image"
    systematic = float(result.systematic_error[i])
    if systematic > CLEAR:
        return (
            f"several similar images, about {systematic:.0e} from their mean, explain the "
            "gradients within their noise as well"
        )
    if not float(result.gradient_residual[i]) <= CLEAR:
        return f"its gradients are {float(result.gradient_residual[i]):.0e} from the observed ones"
    return ""

"""What the recursion starts from: a map's values, or only the derivative of the loss by it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.head import HeadInput
from rconv.attack.report import LayerReport
from rconv.linalg.solution import root_mean_square
from rconv.linalg.system import FREE
from rconv.model.ends import Head
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


@dataclass(frozen=True)
class Start:
    """What is known of a network's last node, for M candidates.

    Parameters
    ----------
    estimate : Estimate or None
        Its map; None where it is not known.
    cotangent : Cotangent
        The derivative of the loss by it.
    report : LayerReport
        How well this is known.
    linear : str
        A layer the derivative by whose output is known as well: the certificate starts there.
    derivative : Tensor
        This derivative, (M, K), or (M, D, Ho, Wo) of a convolution.
    solved : tuple of int, Estimate and LayerReport, or None
        Another node whose map is known besides, and how well.
    """

    estimate: Estimate | None
    cotangent: Cotangent
    report: LayerReport
    linear: str
    derivative: Tensor
    solved: tuple[int, Estimate, LayerReport] | None = None


def from_head(
    linear: Head,
    head: HeadInput,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
    shape: tuple[int, int, int],
) -> Start:
    """What the first Linear says of the map below it.

    Parameters
    ----------
    linear : Head
        The Linear.
    head : HeadInput
        Candidates for its input, M of them, divided by `unit`.
    gradients : dict of str to Tensor
        Name → (M, *parameter shape), divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (M,).
    shape : tuple of int
        (C, H, W) of the map.

    Returns
    -------
    Start
    """
    value = head.value.reshape(-1, *shape)
    cotangent, sizes = head.cotangent @ linear.weight, head.cotangent.abs() @ linear.weight.abs()
    if head.error is None:
        level = _head_level(linear, gradients, noise, unit)
        error = channel_errors(value, level, ("gradient",) * len(value), noise)
        # Each z̄ carries its own error; where the rows of V cancel, so that v̄ is small, it weighs
        # more.
        spread = level[:, None] * sizes
        if noise.spread or noise.deviations:
            own = level * root_mean_square(head.cotangent)
            spread = torch.hypot(spread, own[:, None] * linear.weight.norm(dim=0))
    else:
        error = head.error.reshape(value.shape).flatten(2).square().mean(dim=2).sqrt()
        own = noise.deviation(f"{linear.name}.bias", head.cotangent, unit)
        spread = (own.square() @ linear.weight.square()).sqrt()
        spread = torch.hypot(spread, noise.relative * sizes)
    size = root_mean_square(cotangent)
    relative = root_mean_square(spread) / torch.where(size > 0, size, 1.0)
    back = Cotangent(cotangent.reshape(value.shape), relative.clamp(max=1.0))
    report = head_report(linear.name, head)
    return Start(Estimate.whole(value, error), back, report, linear.name, head.cotangent)


def _head_level(linear: Head, gradients: Gradients, noise: Noise, unit: Tensor) -> Tensor:
    """(N,): relative noise of the first Linear's gradients, weight and bias together."""
    names = [f"{linear.name}.weight", f"{linear.name}.bias"]
    levels = [noise.level(n, gradients[n], unit) for n in names if n in gradients]
    return torch.stack(levels).norm(dim=0).clamp(max=1.0)


def head_report(name: str, head: HeadInput) -> LayerReport:
    """How well the input of the first Linear is determined."""
    unknowns = head.value.shape[1]
    rows = torch.full_like(head.image, head.cotangent.shape[1] * unknowns)
    ones = torch.ones_like(head.residual)
    return LayerReport(
        name,
        unknowns,
        rows,
        torch.zeros_like(rows),
        head.known * unknowns,
        torch.where(head.known, ones, torch.inf),
        head.residual,
        ("head",) * len(rows),
        torch.zeros_like(rows),
        torch.zeros_like(head.value),
        *(torch.where(head.known[:, None], head.value, end) for end in FREE),
    )


def channel_errors(value: Tensor, error: Tensor, kinds: Sequence[str], noise: Noise) -> Tensor:
    """Standard deviation of each channel's values, (N, C).

    Gradient constraints solve every channel for itself, and where their error is rounding, it is
    relative to the channel. Other equations, and noise of one size, share it among all.
    """
    rounding = not noise.spread and not noise.deviations
    apart = torch.tensor([rounding and kind == "gradient" for kind in kinds], device=value.device)
    own = value.flatten(2).square().mean(dim=2).sqrt()
    shared = root_mean_square(value)[:, None].expand_as(own)
    return error[:, None] * torch.where(apart[:, None], own, shared)

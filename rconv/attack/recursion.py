"""The recursion: head, then activation, equations and propagation, layer by layer to the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.attack.backward import Passed, through_activation
from rconv.attack.head import HeadInput
from rconv.attack.layer import solve_layer
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.linalg.solution import root_mean_square
from rconv.model.nodes import Head, Network
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


@dataclass(frozen=True)
class Signal:
    """What is known between two layers, for N images: values, and the error beside each.

    Parameters
    ----------
    value : Tensor
        Y, (N, D, Ho, Wo): the output of the activation above, the input of the layer above.
    error : Tensor
        (N, D), its standard deviation, in the unit of Y.
    cotangent : Tensor
        Ȳ = ∂ℓ/∂Y, shaped as Y.
    noise : Tensor
        (N,), relative error of the cotangent, both as root mean squares.
    """

    value: Tensor
    error: Tensor
    cotangent: Tensor
    noise: Tensor


def recursion(
    network: Network,
    plans: Sequence[LayerPlan],
    head: HeadInput,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
    *,
    frugal: bool = False,
) -> tuple[Tensor, tuple[LayerReport, ...], Tensor]:
    """From the input of the first Linear down to the image.

    Parameters
    ----------
    network : Network
        The model.
    plans : sequence of LayerPlan
        One per convolution, in the order of the forward pass.
    head : HeadInput
        Candidates, one or more for each image.
    gradients : dict of str to Tensor
        Name → (M, *parameter shape), one per candidate, divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (M,).
    frugal : bool
        Where `auto` may choose, keep the cheapest equations.

    Returns
    -------
    images : Tensor
        (M, C, H, W).
    reports : tuple of LayerReport
        From the head down to the first convolution.
    error : Tensor
        (M,), standard deviation of the images, in the unit of the pixels, from the noise alone.
    """
    reports = [head_report(network.head.name, head)]
    shape = network.stages[-1].geometry.output if network.stages else network.input_shape
    signal = _from_head(network.head, head, gradients, noise, unit, shape)
    for plan in reversed(plans):
        stage, g = plan.stage, plan.stage.geometry
        passed = through_activation(
            stage.activation,
            signal.value,
            signal.cotangent,
            gradients.get(stage.offset),
            signal.error,
            signal.noise,
        )
        weight_gradient = gradients[f"{stage.name}.weight"]
        precision = noise.level(f"{stage.name}.weight", weight_gradient, unit)
        spread = noise.rows(f"{stage.name}.weight", weight_gradient, unit)
        solved, report = solve_layer(
            plan, passed, weight_gradient, precision, spread=spread, frugal=frugal
        )
        reports.append(report)
        value = solved.value.reshape(-1, *g.input)
        cotangent = stage.transpose(passed.cotangent)
        signal = Signal(
            value,
            _errors(value, solved.error, report.constraints, noise),
            cotangent,
            _propagated(plan.gain, passed, cotangent),
        )
    return signal.value, tuple(reports), root_mean_square(signal.error)


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
    )


def _from_head(
    linear: Head,
    head: HeadInput,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
    shape: tuple[int, int, int],
) -> Signal:
    """What the first Linear says of the layer below it."""
    value = head.value.reshape(-1, *shape)
    names = [f"{linear.name}.weight", f"{linear.name}.bias"]
    levels = [noise.level(n, gradients[n], unit) for n in names if n in gradients]
    level = torch.stack(levels).norm(dim=0).clamp(max=1.0)
    cotangent = head.cotangent @ linear.weight
    # Each z̄ carries its own error; where the rows of V cancel, so that v̄ is small, it weighs more.
    spread = level[:, None] * (head.cotangent.abs() @ linear.weight.abs())
    if noise.spread or noise.deviations:
        own = level * root_mean_square(head.cotangent)
        spread = torch.hypot(spread, own[:, None] * linear.weight.norm(dim=0))
    size = root_mean_square(cotangent)
    relative = root_mean_square(spread) / torch.where(size > 0, size, 1.0)
    error = _errors(value, level, ("gradient",) * len(value), noise)
    return Signal(value, error, cotangent.reshape(value.shape), relative.clamp(max=1.0))


def _errors(value: Tensor, error: Tensor, kinds: Sequence[str], noise: Noise) -> Tensor:
    """(N, C): standard deviation of each channel's values.

    Gradient constraints solve every channel for itself, and where their error is rounding, it is
    relative to the channel. Other equations, and noise of one size, share it among all.
    """
    rounding = not noise.spread and not noise.deviations
    apart = torch.tensor([rounding and kind == "gradient" for kind in kinds], device=value.device)
    own = value.flatten(2).square().mean(dim=2).sqrt()
    shared = root_mean_square(value)[:, None].expand_as(own)
    return error[:, None] * torch.where(apart[:, None], own, shared)


def _propagated(gain: float, passed: Passed, cotangent: Tensor) -> Tensor:
    """(N,): relative noise of X̄ = convᵀ(Ō), for independent errors of Ō of one size."""
    spread = passed.cotangent_noise * root_mean_square(passed.cotangent) * gain
    size = root_mean_square(cotangent)
    noise = (spread / torch.where(size > 0, size, 1.0)).clamp(max=1.0)
    return noise.maximum(passed.cotangent_noise)

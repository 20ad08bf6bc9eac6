"""The recursion: head, then activation, equations and propagation, map by map to the image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.head import HeadInput
from rconv.attack.joint import solve_joint
from rconv.attack.layer import solve_layer
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.attack.signal import Cotangent, Told
from rconv.attack.solve import Known
from rconv.attack.walk import Walk
from rconv.linalg.equations import FREE
from rconv.linalg.solution import root_mean_square
from rconv.model.geometry import Stage
from rconv.model.nodes import Head, Network
from rconv.model.told import backward_order
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


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
    start = _from_head(network.head, head, gradients, noise, unit, network.nodes[-1].shape)
    walk = Walk(network, *start)
    reports, error = [head_report(network.head.name, head)], walk.head.error
    by_name = {plan.stage.name: plan for plan in plans}
    for node in backward_order(network):
        taken = list(network.fed_by(node))
        if taken:
            own = [by_name[stage.name] for _, stage in taken]
            known = [known_of(stage, walk.passed[i], gradients, noise, unit) for i, stage in taken]
            told = walk.told(node)
            if told is None and len(own) == 1:
                solved, report = solve_layer(own[0], known[0], frugal=frugal)
            else:
                solved, report = solve_joint(own, known, told, frugal=frugal)
            reports.append(report.under(reports, own[0].bounds))
            value = solved.value.reshape(-1, *network.nodes[node].shape)
            error = channel_errors(value, solved.error, report.constraints, noise)
            walk.solved(node, Told.whole(value, error))
        walk.pass_on(node, gradients)
    return walk.whole[0].value, tuple(reports), root_mean_square(error)


def known_of(
    stage: Stage, passed: Passed, gradients: Gradients, noise: Noise, unit: Tensor
) -> Known:
    """What is known of one convolution before its input is."""
    name = f"{stage.name}.weight"
    gradient = gradients[name]
    precision = noise.level(name, gradient, unit)
    return Known(stage, passed, gradient, precision, noise.rows(name, gradient, unit))


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


def _from_head(
    linear: Head,
    head: HeadInput,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
    shape: tuple[int, int, int],
) -> tuple[Told, Cotangent]:
    """What the first Linear says of the map below it."""
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
    return Told.whole(value, error), Cotangent(
        cotangent.reshape(value.shape), relative.clamp(max=1.0)
    )


def _head_level(linear: Head, gradients: Gradients, noise: Noise, unit: Tensor) -> Tensor:
    """(N,): relative noise of the first Linear's gradients, weight and bias together."""
    names = [f"{linear.name}.weight", f"{linear.name}.bias"]
    levels = [noise.level(n, gradients[n], unit) for n in names if n in gradients]
    return torch.stack(levels).norm(dim=0).clamp(max=1.0)


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

"""What the recursion starts from where a convolution is entered by its own gradients."""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.factor import factor_below
from rconv.attack.report import LayerReport
from rconv.attack.spans import TOLD, Entered, Own, enter, rank_of
from rconv.attack.start import Start
from rconv.equations.spans import Spans
from rconv.linalg.system import FREE
from rconv.model.geometry import Stage
from rconv.model.nodes import Network
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


def from_spans(
    network: Network, spans: Spans, gradients: Gradients, noise: Noise, unit: Tensor
) -> Start:
    """What a convolution's own gradients say of its input and of the derivative by its output.

    Parameters
    ----------
    network : Network
        That ends at the convolution, or at a sum that its output is added to.
    spans : Spans
        Of the convolution.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (N,).

    Returns
    -------
    Start
        With the convolution's input.
    """
    node = network.entered
    stage, source = network.nodes[node].does, network.nodes[node].inputs[0]
    found = [enter(spans, own) for own in _own(stage, gradients, noise, unit)]
    level = noise.level(f"{stage.name}.weight", gradients[f"{stage.name}.weight"], unit)
    value = torch.stack([own.value for own in found])
    # Errors that are not independent do not average out.
    least = level[:, None] * value.flatten(2).square().mean(dim=2).sqrt()
    error = torch.stack([own.error for own in found])
    estimate = Estimate.whole(value, error.maximum(least))
    relative = torch.stack([own.cotangent_noise for own in found]).maximum(level)
    back = torch.stack([own.cotangent for own in found]).reshape(-1, *stage.geometry.output)
    if stage.scale is not None:
        scale = stage.scale[:, None, None]
        back = torch.where(scale == 0, 0.0, back / torch.where(scale == 0, 1.0, scale))
    cotangent = Cotangent(back, relative)
    opened = torch.tensor([own.open for own in found], device=value.device)
    loose = torch.tensor([own.rank == own.needed and not own.scaled for own in found])
    if loose.any():
        factor, error = factor_below(network, source, estimate, cotangent, gradients)
        takes = loose.to(error.device) & (error < 1 / TOLD)
        # Where nothing determines the factor, its sign would be that of a singular vector, which
        # differs between libraries: take the one that makes the sum of the map positive.
        negative = loose.to(takes.device) & (estimate.value.flatten(1).sum(dim=1) < 0)
        factor = torch.where(takes, factor, torch.where(negative, -1.0, 1.0).to(factor))
        error = torch.where(takes, error, 0.0)
        estimate, cotangent = _multiplied(estimate, cotangent, factor, error)
        opened = opened - takes.long()
    reports = _reports(spans, stage, found, estimate.value, opened)
    end, derivative = network.head.logits, gradients.get(f"{network.head.logits}.bias")
    if end is None:
        end, derivative = stage.name, stage.unscaled(cotangent.value)
    return Start(None, cotangent, reports[0], end, derivative, (source, estimate, reports[1]))


def span_ranks(network: Network, spans: Spans, gradients: Gradients, noise: Noise) -> Tensor:
    """Rank of the weight gradient of the convolution that is entered, at most what is needed.

    Parameters
    ----------
    network, spans, gradients, noise
        As `from_spans` takes them.

    Returns
    -------
    Tensor
        (N,), int64.
    """
    stage = network.nodes[network.entered].does
    name = f"{stage.name}.weight"
    unit = gradients[name].flatten(1).abs().amax(dim=1)
    unit = torch.where(unit > 0, unit, 1.0)
    own = {name: gradients[name] / unit.reshape(-1, 1, 1, 1, 1)}
    return torch.tensor([rank_of(spans, one) for one in _own(stage, own, noise, unit)])


def _own(stage: Stage, gradients: Gradients, noise: Noise, unit: Tensor) -> list[Own]:
    """Each image's gradients of one convolution, and their errors."""
    name = f"{stage.name}.weight"
    weight = gradients[name].flatten(3)
    spread = noise.row_errors(name, gradients[name], unit).flatten(3)
    offset = f"{stage.name}.bias" if f"{stage.name}.bias" in gradients else stage.offset
    totals, errors = [None] * len(weight), spread.new_zeros(len(weight))
    if offset in gradients:
        scaled = stage.scale is not None and offset != f"{stage.name}.bias"
        factor = stage.scale if scaled else 1.0
        totals = gradients[offset] * factor
        errors = (noise.row_errors(offset, gradients[offset], unit) * factor).abs()
    return [Own(*own) for own in zip(weight, spread, totals, errors, strict=True)]


def _multiplied(
    estimate: Estimate, cotangent: Cotangent, factor: Tensor, error: Tensor
) -> tuple[Estimate, Cotangent]:
    """X and its derivative with a factor for each image, and the factor's relative error."""
    value = estimate.value / factor.reshape(-1, 1, 1, 1)
    spread = estimate.std / factor.abs()[:, None]
    size = value.flatten(2).square().mean(dim=2).sqrt()
    noise = torch.hypot(cotangent.relative_std, error).clamp(max=1.0)
    back = Cotangent(cotangent.value * factor.reshape(-1, 1, 1, 1), noise)
    return replace(estimate, value=value, std=torch.hypot(spread, error[:, None] * size)), back


def _reports(
    spans: Spans, stage: Stage, found: list[Entered], value: Tensor, opened: Tensor
) -> tuple[LayerReport, LayerReport]:
    """How well the derivative by the output is known, and how well the input is."""
    m, device = spans.combinations, value.device
    rank = torch.tensor([own.rank for own in found], device=device)
    losses = torch.stack([own.losses[:2] if len(own.losses) > 1 else own.losses.expand(2)
                          for own in found]).clamp(min=0.0)  # fmt: skip
    weights = stage.geometry.input[0] * stage.geometry.offsets
    none, kinds = torch.zeros_like(rank), ("span",) * len(found)
    empty = value.new_zeros(len(found), m)
    ends = [torch.full_like(empty, end) for end in FREE]
    condition = torch.where(rank == m, torch.stack([own.condition for own in found]), torch.inf)
    told = LayerReport(
        stage.name, m, none + len(stage.weight) * weights, none, rank, condition,
        torch.stack([own.rest for own in found]), kinds, none, empty, *ends,
    )  # fmt: skip
    flat = value.flatten(1)
    known = (opened == 0)[:, None]
    source = LayerReport(
        stage.name, flat.shape[1], none + m * (weights - m), none, flat.shape[1] - opened,
        losses[:, 1].clamp(min=1e-300).rsqrt(), losses[:, 0].sqrt(), kinds, none,
        torch.zeros_like(flat), *(torch.where(known, flat, end) for end in FREE),
    )  # fmt: skip
    return told, source

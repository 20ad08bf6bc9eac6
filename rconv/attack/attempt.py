"""One pass from the gradients to images, with its certificate.

One image for each client, or the B images of its batch: the entry point makes the difference.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from rconv.attack.backward import backward_pass
from rconv.attack.batch_head import InseparableError
from rconv.attack.certificate import distance, recomputed, recomputed_sum, where_observed
from rconv.attack.diagnostics import with_batch_diagnostics
from rconv.attack.entry_points import EntryPoint, checked
from rconv.attack.estimate import Start
from rconv.attack.head import head_report, rank_one
from rconv.attack.label_inference import inferred_labels, own_logits
from rconv.attack.map_problem import MapProblem
from rconv.attack.report import LayerReport, Reconstruction
from rconv.attack.systematic import (
    COARSE,
    black_features,
    cotangent_turn,
    head_mixture,
    second_order,
)
from rconv.attack.verdict import (
    ARITHMETIC,
    STATED,
    expected_error,
    layer_names,
    layer_relative_std,
    residual_excess,
    revealed_noise,
)
from rconv.linalg.solution import Solution
from rconv.model.heads import ConvEntry, Head
from rconv.model.nodes import Network, UnsupportedModelError, solve_order
from rconv.model.wrappers import tensor_of
from rconv.observe.noise import Observed
from rconv.observe.observation import Gradients

EXPLAINS = 1e-8
"""Gradient residual below which a candidate always counts as an explanation."""

MERGED = (
    "it weighs as several samples: one image several times, or the mean of images that are nearly "
    "alike, which the gradient does not separate"
)

HOPELESS = 0.1
"""Relative noise from which on no further attempt is made: next to all directions drown in it."""


def attempt(
    model: nn.Module,
    point: EntryPoint,
    clients: Observed,
    value_range: tuple[float, float],
    *,
    batch: int = 1,
    frugal: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Reconstruction:
    """The images behind gradients.

    Parameters
    ----------
    point : EntryPoint
        Where it is entered, with its plans.
    clients : Observed
        As they were sent; one client where the batch is larger than 1.
    batch : int
        B, images of each client.
    frugal : bool
        Where `auto` may choose, keep the cheapest equations.
    announce : callable, optional
        Takes the name of each layer before its input is solved.

    Returns
    -------
    Reconstruction
        Of N·B images; with the reason among the diagnostics where a batch is not disaggregated.
    """
    noise = 0.0
    try:
        start = point.start(model, clients, batch, announce)
    except InseparableError as error:
        if not ARITHMETIC < error.noise < HOPELESS:
            return _inseparable(point.network, batch, clients, str(error))
        noise, first = error.noise, str(error)
        try:  # the discrepancy principle: noise of the size that the head shows
            start = point.start(model, with_noise(clients, noise), batch, announce)
        except InseparableError:
            return _inseparable(point.network, batch, clients, first)
    solve = partial(_solved, announce, frugal)
    if start.separated is not None:
        return _whole_batch(model, point, start, value_range, solve, clients, batch)
    found = _certified(model, point, start, value_range, solve)
    if noise:
        revealed = found.revealed_noise.clamp(min=noise)
        systematic = found.systematic_error.maximum(second_order(revealed))
        found = replace(found, revealed_noise=revealed, systematic_error=systematic)
    return choose(found, start.client, value_range) if batch == 1 else found


def with_noise(clients: Observed, level: float) -> Observed:
    """The same clients with noise of a relative size in place of what is known of added noise."""
    return replace(clients, noise=replace(clients.noise, relative_std=level))


def _certified(
    model: nn.Module,
    point: EntryPoint,
    start: Start,
    value_range: tuple[float, float],
    solve: Callable[[MapProblem], tuple[Solution, LayerReport]],
) -> Reconstruction:
    """The images of all systems of a start, with certificate and expected error."""
    network, batch, head = point.network, start.samples, point.network.head
    known = start.observed.gradients, start.observed.noise, start.observed.unit
    images, reports, std = backward_pass(network, point.plans, start, solve=solve)
    if isinstance(head, ConvEntry) and point.spans is None:
        reports = checked(network, start, reports)
    error = expected_error(images, reports, std, value_range)
    if start.separated is not None and not start.separated.complete:
        return _one_by_one(images, reports, start, error, len(layer_names(network, known[0])))
    own = where_observed(_recomputed(model, network, images, start), *known[:2])
    levels = layer_relative_std(network, *known)
    residual = distance(own, known[0], [name for name in own if name in known[0]])
    worst, entry = error.reshape(-1, batch).amax(dim=1), reports[0].residual[::batch]
    revealed = revealed_noise(network, own, known[0], levels, entry, worst)
    excess = residual_excess(network, own, *known)
    each = partial(torch.repeat_interleave, repeats=batch, dim=0)
    growth = error / each(levels.amax(dim=1)).clamp(min=1e-300)
    labels = _labels(model, head, images, start)
    if batch == 1:
        systematic = _systematic(model, head, images, start, labels, revealed, levels[:, 0])
    else:
        revealed = _with_excess(revealed, residual, excess)
        systematic = second_order(each(revealed))
        # Undeclared noise grows as the declared one does.
        error = error.maximum(growth * each(revealed)).clamp(max=1.0)
    none = torch.zeros_like(labels)
    judged = each(revealed), systematic, each(excess), growth, none.bool(), ("",) * len(images)
    return Reconstruction(images, reports, labels, each(residual), error, none, *judged)


def _whole_batch(
    model: nn.Module,
    point: EntryPoint,
    start: Start,
    value_range: tuple[float, float],
    solve: Callable[[MapProblem], tuple[Solution, LayerReport]],
    clients: Observed,
    batch: int,
) -> Reconstruction:
    """B images of a hidden layer: a sample as often as it is there, then those not found."""
    separated, network = start.separated, point.network
    try:
        solved = _certified(model, point, start, value_range, solve)
    except UnsupportedModelError as error:  # the rows of single samples do not suffice
        return _inseparable(network, batch, clients, str(error))
    solved = replace(solved, assumed=~separated.certain)
    solved = with_batch_diagnostics(solved, value_range)
    each = zip(solved.diagnostics, separated.certain.tolist(), strict=True)
    solved = replace(
        solved, diagnostics=tuple(own or ("" if sure else MERGED) for own, sure in each)
    )
    index = torch.arange(len(separated.count), device=separated.count.device)
    parts = [solved.select(torch.repeat_interleave(index, separated.count)[:batch])]
    missing = batch - len(parts[0].images)
    if missing:
        reason = (
            "it sends no gradient above the noise, or is alike another"
            if separated.complete
            else f"not separated: only {len(index)} samples are found, and no unit is left with one"
        )
        parts.append(_inseparable(network, missing, start.observed, reason))
    return Reconstruction.concatenate(parts)


def _one_by_one(
    images: Tensor, reports: tuple[LayerReport, ...], start: Start, error: Tensor, layers: int
) -> Reconstruction:
    """Images of samples that were certified one by one, in a gradient that others are in too."""
    zero, none = torch.zeros_like(error), torch.zeros_like(start.labels)
    fields = start.labels, zero + start.report.residual, error, none
    judged = zero, zero, zero[:, None].expand(-1, layers), zero, none.bool()
    return Reconstruction(images, reports, *fields, *judged, ("",) * len(images))


def _solved(
    announce: Callable[[str], None] | None, frugal: bool, problem: MapProblem
) -> tuple[Solution, LayerReport]:
    """The solution of a map, once its name has been announced."""
    if announce is not None:
        announce(problem.name)
    return problem.solve(frugal=frugal)


def _recomputed(model: nn.Module, network: Network, images: Tensor, start: Start) -> Gradients:
    """The gradients of images, summed over those of a system, of all layers that were read."""
    gradients = start.observed.gradients
    compute = recomputed if len(start.client) == len(images) else recomputed_sum
    own = compute(model, start.linear, images, start.derivative)
    # A layer that the model cuts off from the loss has no gradient; what was read has one.
    for name in chain.from_iterable(layer_names(network, gradients)):
        own.setdefault(name, torch.zeros_like(gradients[name]))
    return own


def _systematic(
    model: nn.Module,
    head: Head | ConvEntry,
    images: Tensor,
    start: Start,
    labels: Tensor,
    revealed: Tensor,
    level: Tensor,
) -> Tensor:
    """Relative error of the images if what their noise does not explain is systematic."""
    error = second_order(revealed)
    coarse = torch.where(level > COARSE, torch.ones_like(error), error)
    if isinstance(head, ConvEntry) or not (head.logits and len(head.weight) > 2):
        # No head that would show several images, whose differences drown in a coarse noise.
        return coarse
    own, seen = (start.estimate.value.flatten(1), start.derivative), start.observed
    turn = cotangent_turn(model, head, images, *own, labels)
    black, known = black_features(model, head, images), (seen.gradients, seen.noise, seen.unit)
    mixture = head_mixture(head, turn, *own, black, *known)
    return (error if head.has_bias else coarse).maximum(mixture)


def _labels(model: nn.Module, head: Head | ConvEntry, images: Tensor, start: Start) -> Tensor:
    """Classes from the logit gradients; -1 where the head does not end in logits."""
    if start.labels is not None:
        return start.labels
    if head.logits is None:
        return torch.full((len(images),), -1, device=images.device)
    if isinstance(head, ConvEntry):
        return inferred_labels(start.derivative)
    logit_gradient = _logit_gradient(head, start.derivative, start.observed.gradients)
    if logit_gradient is None:
        return torch.full((len(images),), -1, device=images.device)
    if head.last and (start.report.rank > 0).all():
        return inferred_labels(
            logit_gradient, own_logits(model, head, start.estimate.value.flatten(1))
        )
    with torch.no_grad():
        return inferred_labels(logit_gradient, tensor_of(model(images)))


def _logit_gradient(linear: Head, derivative: Tensor, gradients: Gradients) -> Tensor | None:
    """(N, K) derivative of the loss by the logits, up to a factor."""
    name = linear.logits
    if name == linear.name:
        return derivative
    if f"{name}.bias" in gradients:
        return gradients[f"{name}.bias"]
    if f"{name}.weight" not in gradients:
        return None
    return torch.stack([rank_one(g)[0] for g in gradients[f"{name}.weight"]])


def _with_excess(revealed: Tensor, residual: Tensor, excess: Tensor) -> Tensor:
    """Revealed noise, and the residual where some layer's is far above its noise, (N,).

    Right images stay within twice what their noise allows; the mean of weights of several clients,
    where its rounding turned outputs to the other side of a kink, had six times as much and more.
    """
    undeclared = (excess > STATED).any(dim=1)
    return torch.where(undeclared, revealed.maximum(residual.clamp(max=1.0)), revealed)


def _inseparable(network: Network, batch: int, clients: Observed, reason: str) -> Reconstruction:
    """A batch that is not disaggregated: nothing is known of its images."""
    head, like = network.head, network.head.weight
    lost, rank = like.new_full((batch,), torch.inf), torch.zeros(batch, dtype=torch.int64)
    rank, certain = rank.to(like.device), torch.ones_like(lost)
    flat = like.new_zeros(batch, like.shape[1])
    reports = [head_report(head.name, flat, len(like), lost, rank.bool())]
    for node in solve_order(network):
        stages = [stage for _, stage in network.fed_by(node)]
        if stages:
            n, name = stages[0].geometry.unknowns, " and ".join(stage.name for stage in stages)
            reports.append(LayerReport.plain(name, "none", n, 0, rank, lost, lost))
    images = like.new_zeros(batch, *network.input_shape)
    excess = lost[:, None].expand(-1, len(layer_names(network, clients.gradients)))
    fields = rank - 1, lost, certain, rank, certain, certain, excess, lost, rank.bool()
    return Reconstruction(images, tuple(reports), *fields, (reason,) * batch)


def choose(
    candidates: Reconstruction, image: Tensor, value_range: tuple[float, float]
) -> Reconstruction:
    """Keep one candidate per image.

    A head without a bias leaves a sign, and at times a scale, open: each choice gives a candidate
    of its own, of the image (M,) that it explains. Those count that explain the gradients about as
    well as the best one; among them the one that stays closest to the range of pixel values is
    kept, and the others that lie within it are counted as twins.
    """
    count = int(image[-1]) + 1
    if count == len(image):
        return candidates
    low, high = value_range
    x = candidates.images
    outside = (x.clamp(low, high) - x).flatten(1).abs().amax(dim=1)
    chosen, twins = [], []
    for i in range(count):
        own = (image == i).nonzero()[:, 0]
        residual = candidates.gradient_residual[own]
        explains = residual <= (10 * residual.min()).clamp(min=EXPLAINS)
        inside = outside[own] <= 1e-3 * (high - low)
        chosen.append(int(own[torch.where(explains, outside[own], torch.inf).argmin()]))
        twins.append(max(0, int((explains & inside).sum()) - 1))
    result = candidates.select(torch.tensor(chosen, device=x.device))
    return replace(result, twins=torch.tensor(twins, device=x.device))


def within_range(result: Reconstruction, value_range: tuple[float, float]) -> Reconstruction:
    """Images that equations do not determine, moved into the range of the pixels.

    Where such an image explains the gradients no better than nothing does, a residual of 1 or more,
    it is worth less than a flat image of the middle of the range, which is at least 6 dB from every
    image: then that is the answer, and its expected error is 1. Certificate and verdict are those
    of the images as they were.
    """
    low, high = value_range
    opened = ~result.full_rank
    lost = opened & ~(result.gradient_residual < 1)
    shape = (-1, 1, 1, 1)
    images = torch.where(opened.reshape(shape), result.images.clamp(low, high), result.images)
    images = torch.where(lost.reshape(shape), (low + high) / 2, images)
    error = torch.where(lost, 1.0, result.expected_error)
    return replace(result, images=images, expected_error=error)

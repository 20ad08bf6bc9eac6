"""One pass from the gradients to images, with its certificate."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from rconv.attack.backward import backward_pass
from rconv.attack.certificate import distance, recomputed, where_observed
from rconv.attack.entry import checked, from_embedding
from rconv.attack.from_spans import from_spans
from rconv.attack.head import HeadInput, head_input, rank_one
from rconv.attack.labels import own_logits, told_labels
from rconv.attack.map_problem import MapProblem
from rconv.attack.report import LayerReport, Reconstruction
from rconv.attack.start import Start, from_head
from rconv.attack.systematic import (
    COARSE,
    black_features,
    cotangent_turn,
    head_mixture,
    second_order,
)
from rconv.attack.verdict import (
    expected_error,
    layer_levels,
    layer_names,
    residual_excess,
    revealed_noise,
)
from rconv.attack.ways import Way
from rconv.linalg.solution import Solution
from rconv.model.ends import Entry, Head
from rconv.model.nodes import Network
from rconv.model.wrappers import tensor_of
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


def attempt(
    model: nn.Module,
    way: Way,
    gradients: Gradients,
    noise: Noise,
    value_range: tuple[float, float],
    *,
    frugal: bool = False,
    announce: Callable[[str], None] | None = None,
) -> tuple[Reconstruction, Tensor]:
    """Candidates for the images behind gradients.

    Parameters
    ----------
    model : Module
        The shared model, in the dtype that the certificate is computed in.
    way : Way
        The way into it, with its plans.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), float64 where equations are made of them.
    noise : Noise
        What is known of their errors.
    value_range : tuple of float
        Of the pixels.
    frugal : bool
        Where `auto` may choose, keep the cheapest equations.
    announce : callable, optional
        Takes the name of each layer before its input is solved.

    Returns
    -------
    candidates : Reconstruction
        Of M ≥ N candidates, more than one for an image where the head leaves several open.
    image : Tensor
        (M,), int64, the image that each candidate explains.
    """
    network, head = way.network, way.network.head
    found = head_input(head, gradients, noise) if isinstance(head, Head) else None
    image = _images(gradients) if found is None else found.image
    unit, scaled = _scaled(gradients, image)
    noise = noise.select(image, gradients)
    start = _start(way, found, scaled, noise, unit)
    known, solve = (scaled, noise, unit), partial(_solved, announce, frugal)
    images, reports, spread = backward_pass(network, way.plans, start, *known, solve=solve)
    if found is None and way.spans is None:
        reports = checked(network, start, reports, scaled)
    error = expected_error(images, reports, spread, value_range)
    own = where_observed(_recomputed(model, network, images, start, scaled), scaled, noise)
    levels = layer_levels(network, *known)
    revealed = revealed_noise(network, own, scaled, levels, reports[0].residual, error)
    labels = _labels(model, head, images, found, start.derivative, scaled)
    candidates = Reconstruction(
        images,
        reports,
        labels,
        distance(own, scaled, [name for name in own if name in scaled]),
        error,
        torch.zeros_like(image),
        revealed,
        _systematic(model, head, images, found, start, labels, *known, revealed, levels[:, 0]),
        residual_excess(network, own, *known),
        error / levels.amax(dim=1).clamp(min=1e-300),
        torch.zeros_like(image, dtype=torch.bool),
        ("",) * len(images),
    )
    return candidates, image


def _solved(
    announce: Callable[[str], None] | None, frugal: bool, problem: MapProblem
) -> tuple[Solution, LayerReport]:
    """The solution of a map, once its name has been announced."""
    if announce is not None:
        announce(problem.name)
    return problem.solve(frugal=frugal)


def _recomputed(
    model: nn.Module, network: Network, images: Tensor, start: Start, gradients: Gradients
) -> Gradients:
    """The gradients of images, of all layers that were read."""
    own = recomputed(model, start.linear, images, start.derivative)
    # A layer that the model cuts off from the loss has no gradient; what was read has one.
    for name in chain.from_iterable(layer_names(network, gradients)):
        own.setdefault(name, torch.zeros_like(gradients[name]))
    return own


def _systematic(
    model: nn.Module,
    head: Head | Entry,
    images: Tensor,
    found: HeadInput | None,
    start: Start,
    labels: Tensor,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
    revealed: Tensor,
    level: Tensor,
) -> Tensor:
    """Relative error of the images if what their noise does not explain is systematic."""
    error = second_order(revealed)
    if found is None or not head.has_bias or not head.logits or len(head.weight) < 3:
        # No head that would show several images, whose differences drown in a coarse noise.
        return torch.where(level > COARSE, torch.ones_like(error), error)
    own = found.value, start.derivative
    turn = cotangent_turn(model, head, images, *own, labels)
    black = black_features(model, head, images)
    return error.maximum(head_mixture(head, turn, *own, black, gradients, noise, unit))


def _start(
    way: Way, found: HeadInput | None, gradients: Gradients, noise: Noise, unit: Tensor
) -> Start:
    """Where the recursion starts, in gradients that are divided by `unit`."""
    network = way.network
    if way.spans is not None:
        return from_spans(network, way.spans, gradients, noise, unit)
    if found is None:
        return from_embedding(network, gradients, noise, unit)
    found = replace(found, cotangent=_divided(found.cotangent, unit))
    shape = network.nodes[-1].shape
    return from_head(network.head, found, gradients, noise, unit, shape)


def _labels(
    model: nn.Module,
    head: Head | Entry,
    images: Tensor,
    found: HeadInput | None,
    derivative: Tensor,
    gradients: Gradients,
) -> Tensor:
    """Classes told by the logit gradients; -1 where the head does not end in logits."""
    if found is None and head.logits is None:
        return torch.full((len(images),), -1, device=images.device)
    if found is None:
        return told_labels(derivative)
    logit_gradient = _logit_gradient(head, derivative, gradients)
    if logit_gradient is None:
        return torch.full_like(found.image, -1)
    if head.last and found.known.all():
        logits = own_logits(model, head, found.value)
    else:
        with torch.no_grad():
            logits = tensor_of(model(images))
    return told_labels(logit_gradient, logits)


def _logit_gradient(linear: Head, derivative: Tensor, gradients: Gradients) -> Tensor | None:
    """(N, K) derivative of the loss by the logits, up to a factor."""
    name = linear.logits
    if name is None or name == linear.name:
        return None if name is None else derivative
    if f"{name}.bias" in gradients:
        return gradients[f"{name}.bias"]
    if f"{name}.weight" not in gradients:
        return None
    return torch.stack([rank_one(g)[0] for g in gradients[f"{name}.weight"]])


def _images(gradients: Gradients) -> Tensor:
    """(N,), int64: the images, one after the other."""
    own = next(iter(gradients.values()))
    return torch.arange(len(own), device=own.device)


def _scaled(gradients: Gradients, image: Tensor) -> tuple[Tensor, Gradients]:
    """The largest entry of each candidate's gradients, and these divided by it.

    Gradients of 1e-200, of a saturated softmax, are sound, but have no square.
    """
    unit = largest_entry(gradients)[image]
    return unit, {name: _divided(g[image], unit) for name, g in gradients.items()}


def _divided(values: Tensor, unit: Tensor) -> Tensor:
    return values / unit.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


def largest_entry(gradients: Gradients) -> Tensor:
    """(N,): size of the largest entry of each image's gradients, 1 where all are zero."""
    sizes = torch.stack([g.flatten(1).abs().amax(dim=1).double() for g in gradients.values()])
    unit = sizes.amax(dim=0)
    return torch.where(unit > 0, unit, 1.0)

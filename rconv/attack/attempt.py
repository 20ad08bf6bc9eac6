"""One pass from the gradients to images, with its certificate."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.attack.certificate import distance, recomputed
from rconv.attack.head import HeadInput, head_input, rank_one
from rconv.attack.labels import own_logits, told_labels
from rconv.attack.plan import LayerPlan
from rconv.attack.recursion import recursion
from rconv.attack.report import Reconstruction
from rconv.attack.verdict import expected_error, layer_levels, layer_names, revealed_noise
from rconv.model.nodes import Head, Network
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


def attempt(
    model: nn.Module,
    network: Network,
    plans: Sequence[LayerPlan],
    gradients: Gradients,
    noise: Noise,
    value_range: tuple[float, float],
    *,
    frugal: bool = False,
) -> tuple[Reconstruction, Tensor]:
    """Candidates for the images behind gradients.

    Parameters
    ----------
    model : Module
        The shared model, float64.
    network : Network
        The same, as it was read.
    plans : sequence of LayerPlan
        One per convolution.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), float64.
    noise : Noise
        What is known of their errors.
    value_range : tuple of float
        Of the pixels.
    frugal : bool
        Where `auto` may choose, keep the cheapest equations.

    Returns
    -------
    candidates : Reconstruction
        Of M ≥ N candidates, more than one for an image where the head leaves several open.
    image : Tensor
        (M,), int64, the image that each candidate explains.
    """
    head = head_input(network.head, gradients, noise)
    # Relative to the largest entry: gradients of 1e-200, of a saturated softmax, are sound,
    # but have no square.
    unit = largest_entry(gradients)[head.image]
    head = replace(head, cotangent=head.cotangent / unit[:, None])
    scaled = {
        name: g[head.image] / unit.reshape(-1, *[1] * (g.dim() - 1))
        for name, g in gradients.items()
    }
    noise = noise.select(head.image, gradients)
    images, reports, spread = recursion(network, plans, head, scaled, noise, unit, frugal=frugal)
    error = expected_error(images, reports, spread, value_range)
    own = recomputed(model, network.head.name, images, head.cotangent)
    # A layer that the model cuts off from the loss has no gradient; what was read has one.
    for names in layer_names(network, scaled):
        for name in names:
            own.setdefault(name, torch.zeros_like(scaled[name]))
    levels = layer_levels(network, scaled, noise, unit)
    candidates = Reconstruction(
        images,
        reports,
        _labels(model, network.head, images, head, scaled),
        distance(own, scaled, list(own)),
        error,
        torch.zeros_like(head.image),
        revealed_noise(network, own, scaled, levels, head.residual, error),
        error / levels.amax(dim=1).clamp(min=1e-300),
        torch.zeros_like(head.known),
        ("",) * len(images),
    )
    return candidates, head.image


def _labels(
    model: nn.Module, linear: Head, images: Tensor, head: HeadInput, gradients: Gradients
) -> Tensor:
    """Classes told by the logit gradients; -1 where the head does not end in logits."""
    logit_gradient = _logit_gradient(linear, head, gradients)
    if logit_gradient is None:
        return torch.full_like(head.image, -1)
    if linear.last and head.known.all():
        logits = own_logits(model, linear, head.value)
    else:
        with torch.no_grad():
            logits = model(images)
    return told_labels(logit_gradient, logits)


def _logit_gradient(linear: Head, head: HeadInput, gradients: Gradients) -> Tensor | None:
    """(N, K) derivative of the loss by the logits, up to a factor."""
    name = linear.logits
    if name is None or name == linear.name:
        return None if name is None else head.cotangent
    if f"{name}.bias" in gradients:
        return gradients[f"{name}.bias"]
    return torch.stack([rank_one(g)[0] for g in gradients[f"{name}.weight"]])


def largest_entry(gradients: Gradients) -> Tensor:
    """(N,): size of the largest entry of each image's gradients, 1 where all are zero."""
    sizes = torch.stack([g.flatten(1).abs().amax(dim=1) for g in gradients.values()])
    unit = sizes.amax(dim=0)
    return torch.where(unit > 0, unit, 1.0)

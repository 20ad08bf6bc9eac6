"""Weights given as gradients, gradients given as weights, before and after exchanged."""

import argparse

import torch
from torch import Tensor, nn

from rconv.cli.terminal import complain
from rconv.observe.observation import Gradients

RANK_ONE = 1e-3
"""Second singular value, relative to the first, up to which a matrix counts as one outer product:
above the rounding of float16 gradients."""

FAR = 0.3
"""Second singular value above which a matrix is far from an outer product, and sum of a bias,
relative to the sum of its sizes, above which it is far from zero. Gradients with so much noise
reconstruct nothing."""


def check_roles(
    arguments: argparse.Namespace, model: nn.Module, gradients: Gradients | None = None
) -> None:
    """Say before the work if files seem to be exchanged.

    The gradient of the last Linear of one image is an outer product, and with cross-entropy the
    gradient of its bias sums to zero. Weights have neither property, up to rare exceptions, so
    that these two give a warning. What is certain is refused.

    Parameters
    ----------
    arguments : Namespace
        With `weights`, and of the attack `gradients`, `after` and `batch`.
    model : Module
        With the weights that were given.
    gradients : mapping of str to Tensor, optional
        What was received.

    Raises
    ------
    ValueError
        If the gradients are the model's weights, or hold its buffers.
    """
    a = arguments
    last = _last_linear(model)
    if a.weights is not None and last is not None:
        weight, bias = (p.detach().double() for p in (last.weight, last.bias))
        if _second(weight) < RANK_ONE and 0 < bias.abs().sum() and _sum(bias) < RANK_ONE:
            _warn("--weights", "these look like gradients: the last layer is an outer product")
    if gradients is None:
        return
    _check_not_weights(model, gradients)
    head = _gradient_of(model, last, gradients) if a.batch == 1 else None
    if head is None:
        return
    weight, bias = head
    if a.after is None and _second(weight) > FAR and _sum(bias) > FAR:
        _warn("--gradients", "these look like weights: the last layer is no outer product")
    if a.after is not None and len(bias) > 2 and (bias > 0).sum() == 1 and (bias < 0).sum() > 1:
        _warn("--before, --after", "exchanged? With cross-entropy the step goes the other way")


def _check_not_weights(model: nn.Module, gradients: Gradients) -> None:
    buffers = [name for name, _ in model.named_buffers() if name in gradients]
    if buffers:
        raise ValueError(f"the file holds {buffers[0]}, a buffer: it holds weights, not gradients")
    own = {name: p.detach() for name, p in model.named_parameters()}
    if set(own) == set(gradients) and all(
        g.numel() == own[name].numel()
        and torch.equal(g.reshape(own[name].shape).to(own[name]), own[name])
        for name, g in gradients.items()
    ):
        raise ValueError("the gradients equal the model's weights: the file holds weights")


def _last_linear(model: nn.Module) -> nn.Linear | None:
    """The last Linear, if it has a bias and several outputs."""
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not found or found[-1].bias is None or min(found[-1].weight.shape) < 2:
        return None
    return found[-1]


def _gradient_of(
    model: nn.Module, layer: nn.Linear | None, gradients: Gradients
) -> tuple[Tensor, Tensor] | None:
    """(K, n) and (K,) of the first client, float64; None where they are not there or all zero."""
    names = {id(p): name for name, p in model.named_parameters()}
    parameters = () if layer is None else (layer.weight, layer.bias)
    sent = [(gradients.get(names.get(id(p))), p) for p in parameters]
    if not sent or any(g is None or g.shape[g.dim() - p.dim() :] != p.shape for g, p in sent):
        return None
    weight, bias = (g.detach().double().reshape(-1, *p.shape)[0] for g, p in sent)
    sound = weight.isfinite().all() and bias.isfinite().all()
    return (weight, bias) if sound and weight.any() and bias.any() else None


def _second(matrix: Tensor) -> float:
    """Second singular value, relative to the first."""
    values = torch.linalg.svdvals(matrix)
    return float(values[1] / values[0]) if values[0] > 0 else 1.0


def _sum(vector: Tensor) -> float:
    """Size of the sum, relative to the sum of the sizes."""
    return float(vector.sum().abs() / vector.abs().sum().clamp(min=1e-300))


def _warn(option: str, text: str) -> None:
    complain(f"warning: {option}: {text}")

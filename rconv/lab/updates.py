r"""Clients that send weights in place of gradients: what a step of plain SGD gives away.

The client computes :math:`w' = w - \eta\, g` in 32-bit numbers and sends :math:`w'`. Whoever has
:math:`w` as well divides the difference by the learning rate. The difference of two 32-bit
numbers is exact in 64 bits; what is lost is lost when the client rounds :math:`w'`: up to half
the spacing of its numbers, which is :math:`2^{-24} |w'|` or less, and :math:`1/\eta` times as much
in the gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.observe.noise import Noise


def sgd_step(model: nn.Module, gradients: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Weights of N clients after one step of plain SGD each: no momentum, no weight decay.

    Parameters
    ----------
    model : Module
        The shared model, float32.
    gradients : mapping of str to Tensor
        Parameter name → `(client N, *parameter shape)`, float32.
    rate : float
        The learning rate η, positive.

    Returns
    -------
    dict of str to Tensor
        Parameter name → `(client N, *parameter shape)`, float32: what each client sends. As
        `torch.optim.SGD` computes it, to the last bit.

    Raises
    ------
    ValueError
        If the rate is not positive, or weights or gradients are not float32.
    """
    _check_rate(rate)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    _check_single(weights, "model")
    _check_single(gradients, "gradients")
    return {name: torch.add(w, gradients[name], alpha=-rate) for name, w in weights.items()}


def gradients_from_weights(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], rate: float
) -> tuple[dict[str, Tensor], Noise]:
    """What an attacker reads from the weights before and after the step.

    Parameters
    ----------
    before : mapping of str to Tensor
        Parameter name → weight that every client started from, float32.
    after : mapping of str to Tensor
        Parameter name → `(client N, *parameter shape)`, float32: what each client sent.
    rate : float
        The learning rate η, which the protocol prescribes.

    Returns
    -------
    gradients : dict of str to Tensor
        Parameter name → `(client N, *parameter shape)`, float64: (before - after) / η.
    noise : Noise
        Of every entry: the rounding of its weight, uniform within half the spacing of the numbers
        there, over the rate; and that of a gradient computed in float32.

    Raises
    ------
    ValueError
        If the rate is not positive, or weights are not float32.
    """
    _check_rate(rate)
    _check_single(before, "weights before")
    _check_single(after, "weights after")
    gradients, deviations = {}, {}
    for name, sent in after.items():
        gradients[name] = (before[name].double() - sent.double()) / rate
        deviations[name] = half_spacing(sent) / rate / math.sqrt(3)
    return gradients, replace(Noise.of(torch.float32), deviations=deviations)


def half_spacing(x: Tensor) -> Tensor:
    """Half the distance from each float32 number to the next larger in size, float64."""
    size = x.abs()
    following = torch.nextafter(size, torch.full_like(size, torch.inf))
    return (following.double() - size.double()) / 2


def _check_rate(rate: float) -> None:
    if not 0 < rate < float("inf"):
        raise ValueError(f"the learning rate is {rate}: it must be positive and finite")


def _check_single(tensors: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} of the {what} is {tensor.dtype}: clients that send 32-bit weights compute "
                "in float32; share model.float()"
            )

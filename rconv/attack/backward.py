"""One activation passed backwards, from its output.

Ō = Ȳ · a'(O) with a' written in Y (R-CONV's key observation). Where the derivative jumps at
Y = 0, a rounding error can pick the wrong side; the gradient of the convolution's bias, the
sum of Ō over the positions, tells which.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.model.activations import Activation, input_noise

EXPLAINED = 1e-2
"""Share of a difference that a corrected output may leave unexplained."""


@dataclass(frozen=True)
class Passed:
    """What lies on the far side of an activation, for N images.

    Attributes
    ----------
    cotangent : Ō = ∂ℓ/∂O, (N, D, Ho, Wo).
    value : O where it is known, (N, D, Ho, Wo); meaningful where `weight` is positive.
    weight : a'(O), the worth of each known O as an equation, 0 where it is unknown.
    """

    cotangent: Tensor
    value: Tensor
    weight: Tensor

    def select(self, index: Tensor | list[int]) -> "Passed":
        """The same of some of the images."""
        return Passed(self.cotangent[index], self.value[index], self.weight[index])


def through_activation(
    activation: Activation,
    output: Tensor,
    cotangent: Tensor,
    bias_gradient: Tensor | None,
    noise: Tensor,
) -> Passed:
    """Pass an activation backwards.

    Parameters
    ----------
    activation : the activation.
    output : Y = a(O) as reconstructed, (N, D, Ho, Wo).
    cotangent : Ȳ = ∂ℓ/∂Y, shaped as Y.
    bias_gradient : gradient of the convolution's bias, (N, D), or None where it has no bias.
    noise : (N,), relative error of Y.
    """
    scale = output.abs().flatten(1).amax(dim=1)
    error = (noise * scale)[:, None, None, None]
    if activation.flat:
        # A true output is never negative: what is below zero shows the size of the error.
        below = (-output).clamp(min=0).flatten(1).amax(dim=1)
        error = torch.minimum(4 * below, 1e-2 * scale).maximum(1e-14 * scale)
        error = error[:, None, None, None]
        output = torch.where(output > error, output, 0.0)
    if activation.kink and bias_gradient is not None:
        output = settle_sides(activation, output, cotangent, bias_gradient, error)
    margin = (noise * 100).clamp(min=1e-12, max=1e-2)[:, None, None, None]
    value, weight = input_noise(activation, output, margin)
    bounded = output.clamp(activation.low, activation.high)
    return Passed(cotangent * activation.derivative(bounded), value, weight)


def settle_sides(
    activation: Activation, output: Tensor, cotangent: Tensor, bias_gradient: Tensor, error: Tensor
) -> Tensor:
    """Correct the side of a kink for outputs near it, so that Σ_p Ō[d, p] = ∂ℓ/∂b[d].

    Where a filter's sum misses its bias gradient, and moving one uncertain output to the other
    side of 0 explains the difference, it is moved. One number cannot tell more than one output.

    Parameters
    ----------
    activation : one with a kink at 0.
    output, cotangent : Y and Ȳ, (N, D, Ho, Wo).
    bias_gradient : (N, D).
    error : broadcasts to Y; outputs below 30 times it in size are uncertain.

    Returns
    -------
    Y with the corrected outputs at ± a tenth of the error.
    """
    y, back = output.flatten(2), cotangent.flatten(2)
    error = error.flatten(2).expand_as(y)
    tiny = torch.full_like(y, 1e-300)
    jump = (activation.derivative(tiny) - activation.derivative(-tiny)) * back
    uncertain = y.abs() <= 30 * error
    miss = (bias_gradient - (back * activation.derivative(y)).sum(dim=2))[..., None]
    left = (miss - torch.where(y > 0, -jump, jump)).abs()
    best, where = torch.where(uncertain, left, torch.inf).min(dim=2, keepdim=True)
    side = torch.where(y > 0, -1.0, 1.0) * error / 10
    moved = y.scatter(2, where, side.gather(2, where))
    return torch.where(best < EXPLAINED * miss.abs(), moved, y).reshape(output.shape)

"""One activation passed backwards, from its output.

Ō = Ȳ · a'(O) with a' written in Y (R-CONV's key observation). Where the derivative jumps at
Y = 0, a rounding error can pick the wrong side; the gradient of the convolution's bias, the
sum of Ō over the positions, decides.
"""

import torch
from torch import Tensor

from rconv.attack.estimate import Cotangent, Estimate
from rconv.model.activations import Activation, input_noise

EXPLAINED = 1e-2
"""Share of a difference that a corrected output may leave unexplained, and of it that the noise
of both may make up: no other output then explains it as well by chance."""

SURE = 6.0
"""Standard deviations from zero beyond which an output is on its side: of a million normal errors
none is larger, which leaves room for errors that are not all of one size."""

UNCERTAIN = 30.0
"""Outputs below this many errors may be moved to the other side, if the bias gradient says so."""

ZERO = 1e-14
"""Of the largest output of a map: below it every output is rounding, whatever the noise."""


def through_activation(
    activation: Activation,
    output: Tensor,
    cotangent: Tensor,
    bias_gradient: Tensor | None,
    noise: Tensor,
    cotangent_noise: Tensor | None = None,
) -> tuple[Cotangent, Estimate]:
    """Pass an activation backwards: Ō = ∂ℓ/∂O, and O where Y determines it.

    Where a ReLU is silent, the estimate says that O is not positive.

    Parameters
    ----------
    activation : Activation
        What stands between O and Y.
    output, cotangent : Tensor
        Y = a(O) as reconstructed, (N, D, Ho, Wo), and Ȳ = ∂ℓ/∂Y.
    bias_gradient : Tensor or None
        Gradient of the convolution's bias, (N, D), where it has one.
    noise : Tensor
        Error of Y: (N,), relative to the largest entry of the image, or (N, D), the standard
        deviation of each map in its own unit.
    cotangent_noise : Tensor, optional
        (N,), relative error of Ȳ; by default that of Y.
    """
    size = output.abs().flatten(2).amax(dim=2)
    error = noise[:, None] * size.amax(dim=1, keepdim=True) if noise.dim() == 1 else noise
    if cotangent_noise is None:
        cotangent_noise = (error / size.clamp(min=1e-300)).amax(dim=1).clamp(max=1.0)
    threshold = error
    if activation.flat:
        low, high = activation.low, activation.high
        threshold = torch.maximum(SURE * error, _shown(output - low, size)).maximum(ZERO * size)
        output = torch.where(output > low + threshold[..., None, None], output, low)
        output = torch.where(output < high - threshold[..., None, None], output, high)
    if activation.kink and bias_gradient is not None:
        output = settle_sides(
            activation,
            output,
            cotangent,
            bias_gradient,
            threshold[..., None, None],
            cotangent_noise,
        )
    value, weight = input_noise(activation, output, _margin(activation, error, threshold))
    bounded = output.clamp(activation.low, activation.high)
    own = cotangent * activation.derivative(bounded)
    spread = _derivative_noise(activation, bounded, cotangent, own, error)
    relative = torch.hypot(cotangent_noise, spread).clamp(max=1.0)
    side = None
    if activation.flat:
        side = (weight == 0) * torch.where(output < activation.high, 1.0, -1.0).to(value)
        ends = torch.where(output < activation.high, activation.low, activation.high)
        value = torch.where(weight > 0, value, ends.to(value))
    return Cotangent(own, relative), Estimate(value, weight, error, side)


def _shown(output: Tensor, size: Tensor) -> Tensor:
    """(N, D): the error that negative outputs show, which a ReLU never has.

    Four times the most negative one of the image, yet no more than a hundredth of the map: beyond
    it true outputs would be lost. Where the image as a whole is known better than that, a map's
    own negative outputs count in any case, half as much again, and a map that lies within the
    error of the image is all error.
    """
    below = (-output).clamp(min=0).flatten(2).amax(dim=2)
    error = 4 * below.amax(dim=1, keepdim=True)
    capped = torch.minimum(error, 1e-2 * size)
    shown = torch.where(size <= error, size, torch.minimum(error, capped.maximum(1.5 * below)))
    known = error <= 1e-2 * size.amax(dim=1, keepdim=True)
    return torch.where(known, shown, capped)


def _margin(activation: Activation, error: Tensor, threshold: Tensor) -> Tensor:
    """(N, D, 1, 1): how near to the end of its range an output is not inverted.

    Hundred errors, so that an inverse is right to a per cent. A range with one end has no unit
    of its own, and an output of ReLU above its threshold is known as it is.
    """
    if activation.flat:
        return threshold[..., None, None] * 0
    return (100 * error).clamp(min=1e-12, max=1e-2)[..., None, None]


def _derivative_noise(
    activation: Activation, y: Tensor, cotangent: Tensor, own: Tensor, error: Tensor
) -> Tensor:
    """(N,): relative error that the error of Y brings into Ō by a'(O), kinks left aside."""
    shift = error[..., None, None]
    above, under = (
        activation.derivative((y + sign * shift).clamp(activation.low, activation.high))
        for sign in (1, -1)
    )
    change = cotangent * (above - under) / 2
    if activation.kink:
        kinks = (activation.low, activation.high) if activation.flat else (0.0,)
        for kink in kinks:
            change = torch.where((y - kink).abs() <= shift, 0.0, change)
    size = own.flatten(1).norm(dim=1)
    return change.flatten(1).norm(dim=1) / torch.where(size > 0, size, 1.0)


def settle_sides(
    activation: Activation,
    output: Tensor,
    cotangent: Tensor,
    bias_gradient: Tensor,
    error: Tensor,
    noise: Tensor | None = None,
) -> Tensor:
    """Correct the side of a kink for outputs near it, so that Σ_p Ō[d, p] = ∂ℓ/∂b[d].

    Where a filter's sum misses its bias gradient (N, D) by more than the noise of both, and moving
    one uncertain output to the other side of 0 explains the difference, it is moved. One number
    cannot determine more than one output. Outputs Y below `UNCERTAIN` times `error` in size are
    uncertain; `noise` (N,) is the relative error of Ȳ and of the bias gradient.
    """
    y, back = output.flatten(2), cotangent.flatten(2)
    error = error.flatten(2).expand_as(y)
    tiny = torch.full_like(y, 1e-300)
    jump = (activation.derivative(tiny) - activation.derivative(-tiny)) * back
    uncertain = y.abs() <= UNCERTAIN * error
    own = back * activation.derivative(y)
    miss = (bias_gradient - own.sum(dim=2))[..., None]
    left = (miss - torch.where(y > 0, -jump, jump)).abs()
    best, where = torch.where(uncertain, left, torch.inf).min(dim=2, keepdim=True)
    moves = best < EXPLAINED * miss.abs()
    if noise is not None:
        spread = noise[:, None, None] * own.norm(dim=2, keepdim=True)
        moves = moves & (spread < EXPLAINED * miss.abs())
    side = torch.where(y > 0, -1.0, 1.0) * error / 10
    moved = y.scatter(2, where, side.gather(2, where))
    return torch.where(moves, moved, y).reshape(output.shape)

"""Activations seen from their output: derivative, inverse, and which side of a kink.

The attack knows the output y = a(o), never the input o. The derivative a'(o) written in y is
all it needs to pass an activation (R-CONV, its key observation); the inverse is used only
where an output is turned into a weight constraint.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """An elementwise activation y = a(o) as a function of its output.

    Attributes
    ----------
    name : the module's class name.
    derivative : y → a'(o), any shape.
    inverse : y → o for y strictly inside (low, high).
    low, high : the open range of y.
    kink : a' jumps at y = 0, so a rounding error decides the derivative.
    flat : y = 0 stands for every o ≤ 0 (ReLU): the inverse holds for y > 0 only.
    """

    name: str
    derivative: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float = -torch.inf
    high: float = torch.inf
    kink: bool = False
    flat: bool = False

    @property
    def invertible(self) -> bool:
        """Whether every output tells its input."""
        return not self.flat


def from_module(module: nn.Module) -> Activation:
    """The `Activation` of a PyTorch module.

    Raises
    ------
    ValueError : an activation whose derivative is no function of its output.
    """
    kind = type(module)
    if kind is nn.Identity:
        return Activation("Identity", torch.ones_like, lambda y: y)
    if kind is nn.ReLU or (kind is nn.LeakyReLU and module.negative_slope == 0):
        step = lambda y: (y > 0).to(y.dtype)  # noqa: E731
        return Activation("ReLU", step, lambda y: y, low=0.0, kink=True, flat=True)
    if kind is nn.LeakyReLU and module.negative_slope > 0:
        return _leaky_relu(module.negative_slope)
    if kind is nn.Sigmoid:
        return Activation("Sigmoid", lambda y: y * (1 - y), torch.logit, low=0.0, high=1.0)
    if kind is nn.Tanh:
        return Activation("Tanh", lambda y: 1 - y * y, torch.atanh, low=-1.0, high=1.0)
    if kind is nn.ELU and module.alpha > 0:
        return _elu(module.alpha)
    if kind is nn.Softplus:
        if module.threshold < 20:
            raise ValueError("Softplus with a threshold below 20 has overlapping outputs")
        return _softplus(module.beta, module.threshold)
    raise ValueError(
        f"{kind.__name__} cannot be passed: the attack needs an activation whose derivative is a "
        "function of its output (ReLU, LeakyReLU with a positive slope, Sigmoid, Tanh, ELU, "
        "Softplus, Identity)"
    )


def _leaky_relu(slope: float) -> Activation:
    return Activation(
        "LeakyReLU",
        lambda y: torch.where(y > 0, torch.ones_like(y), slope),
        lambda y: torch.where(y > 0, y, y / slope),
        kink=True,
    )


def _elu(alpha: float) -> Activation:
    return Activation(
        "ELU",
        lambda y: torch.where(y > 0, torch.ones_like(y), y + alpha),
        lambda y: torch.where(y > 0, y, torch.log1p(y.clamp(max=0) / alpha)),
        low=-alpha,
        kink=alpha != 1,
    )


def _softplus(beta: float, threshold: float) -> Activation:
    # beta·y + log(1 - exp(-beta·y)) is log(exp(beta·y) - 1) without the overflow. Beyond the
    # threshold PyTorch's Softplus is the identity.
    slope = lambda y: torch.where(beta * y > threshold, 1.0, -torch.expm1(-beta * y))  # noqa: E731
    return Activation(
        "Softplus",
        slope,
        lambda y: y + torch.log(slope(y)) / beta,
        low=0.0,
    )


def input_noise(activation: Activation, y: Tensor, margin: float | Tensor) -> tuple[Tensor, Tensor]:
    """Input of the activation where the output tells it, and how much each entry is worth.

    An error δ of y is an error δ / a'(o) of o, so that a'(o) is the weight of the equation
    "o equals this value" in a least-squares fit. Saturated outputs carry next to nothing, and
    outputs within `margin` of the range's ends, or beyond them, nothing at all.

    Parameters
    ----------
    activation : the activation.
    y : its output, any shape.
    margin : distance from the ends of the range below which an output is not inverted;
        broadcasts to y.

    Returns
    -------
    o : the input, finite everywhere, meaningful where the weight is positive; shaped as y.
    weight : a'(o) in [0, ∞), zero where y does not tell o; shaped as y.
    """
    inside = (y > activation.low + margin) & (y < activation.high - margin)
    bounded = torch.where(inside, y, _inner_value(activation))
    return activation.inverse(bounded), activation.derivative(bounded) * inside


def _inner_value(activation: Activation) -> float:
    if torch.isfinite(torch.tensor(activation.high)):
        return (activation.low + activation.high) / 2
    return activation.low + 1 if activation.low > -torch.inf else 1.0

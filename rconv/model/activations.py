"""Activations seen from their output: derivative, inverse, and which side of a kink.

The attack knows the output y = a(o), never the input o. The derivative a'(o) written in y is
all it needs to pass an activation (R-CONV, its key observation); the inverse is used only
where an output is turned into a weight constraint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """An elementwise activation y = a(o) as a function of its output.

    Parameters
    ----------
    name : str
        The module's class name.
    function : Callable
        o → y, any shape. A function that pickle finds by its name.
    derivative : Callable
        y → a'(o), any shape. As `function`.
    inverse : Callable
        y → o for y strictly inside (low, high), any shape. As `function`.
    low, high : float
        The open range of y.
    kink : bool
        Whether a' jumps at y = 0, or at the ends of the range where it is `flat`, so that a
        rounding error decides the derivative.
    flat : bool
        Whether y = low stands for every o ≤ low (ReLU), and y = high for every o ≥ high (ReLU6):
        the inverse holds in between only.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float = -torch.inf
    high: float = torch.inf
    kink: bool = False
    flat: bool = False

    @property
    def invertible(self) -> bool:
        """Whether every output determines its input."""
        return not self.flat


def from_module(module: nn.Module) -> Activation:
    """Say how an activation looks from its output.

    Raises ValueError if its derivative is no function of the output, or its class is not PyTorch's
    own.
    """
    kind = type(module)
    if kind is nn.Identity:
        return Activation("Identity", _same, torch.ones_like, _same)
    if kind is nn.ReLU or (kind is nn.LeakyReLU and module.negative_slope == 0):
        return Activation("ReLU", torch.relu, _step, _same, low=0.0, kink=True, flat=True)
    if kind in (nn.ReLU6, nn.Hardtanh):
        low, high = module.min_val, module.max_val
        clamp = partial(nn.functional.hardtanh, min_val=low, max_val=high)
        functions, ends = (clamp, partial(_between, low, high), _same), {"low": low, "high": high}
        return Activation(kind.__name__, *functions, **ends, kink=True, flat=True)
    if kind is nn.LeakyReLU and 0 < module.negative_slope < torch.inf:
        slope = module.negative_slope
        leaky = partial(nn.functional.leaky_relu, negative_slope=slope)
        slopes = (partial(_two_slopes, slope), partial(_bent, slope))
        return Activation("LeakyReLU", leaky, *slopes, kink=True)
    if kind is nn.Sigmoid:
        return Activation("Sigmoid", torch.sigmoid, _sigmoid_slope, torch.logit, low=0.0, high=1.0)
    if kind is nn.Tanh:
        return Activation("Tanh", torch.tanh, _tanh_slope, torch.atanh, low=-1.0, high=1.0)
    if kind is nn.ELU and 0 < module.alpha < torch.inf:
        alpha = module.alpha
        elu = partial(nn.functional.elu, alpha=alpha)
        functions = (partial(_elu_slope, alpha), partial(_elu_inverse, alpha))
        return Activation("ELU", elu, *functions, low=-alpha, kink=alpha != 1)
    if kind is nn.Softplus and 0 < module.beta < torch.inf:
        return _softplus(module.beta, module.threshold)
    raise ValueError(
        f"{kind.__name__} cannot be passed: the attack needs an activation whose derivative is a "
        "function of its output (PyTorch's own ReLU, ReLU6, Hardtanh, LeakyReLU with a positive "
        "slope, Sigmoid, Tanh, ELU, Softplus, Identity)"
    )


def _same(y: Tensor) -> Tensor:
    return y


def _step(y: Tensor) -> Tensor:
    return (y > 0).to(y.dtype)


def _between(low: float, high: float, y: Tensor) -> Tensor:
    return ((y > low) & (y < high)).to(y.dtype)


def _two_slopes(slope: float, y: Tensor) -> Tensor:
    return torch.where(y > 0, torch.ones_like(y), slope)


def _bent(slope: float, y: Tensor) -> Tensor:
    return torch.where(y > 0, y, y / slope)


def _sigmoid_slope(y: Tensor) -> Tensor:
    return y * (1 - y)


def _tanh_slope(y: Tensor) -> Tensor:
    return 1 - y * y


def _elu_slope(alpha: float, y: Tensor) -> Tensor:
    return torch.where(y > 0, torch.ones_like(y), y + alpha)


def _elu_inverse(alpha: float, y: Tensor) -> Tensor:
    return torch.where(y > 0, y, torch.log1p(y.clamp(max=0) / alpha))


def _softplus(beta: float, threshold: float) -> Activation:
    if not threshold >= 20:
        raise ValueError("Softplus with a threshold below 20 has overlapping outputs")
    softplus = partial(nn.functional.softplus, beta=beta, threshold=threshold)
    functions = (partial(_softplus_slope, beta, threshold), partial(_unplus, beta, threshold))
    return Activation("Softplus", softplus, *functions, low=0.0)


def _softplus_slope(beta: float, threshold: float, y: Tensor) -> Tensor:
    """1 - exp(-beta·y); beyond the threshold PyTorch's Softplus is the identity."""
    return torch.where(beta * y > threshold, 1.0, -torch.expm1(-beta * y))


def _unplus(beta: float, threshold: float, y: Tensor) -> Tensor:
    """y + log(1 - exp(-beta·y)) / beta is log(exp(beta·y) - 1) / beta without the overflow."""
    return y + torch.log(_softplus_slope(beta, threshold, y)) / beta


def input_noise(activation: Activation, y: Tensor, margin: float | Tensor) -> tuple[Tensor, Tensor]:
    """Input of the activation where the output determines it, and the weight of each entry.

    An error δ of y is an error δ / a'(o) of o, so that a'(o) is the weight of the equation "o
    equals this value" in a least-squares fit. Saturated outputs carry next to nothing, and outputs
    within `margin` (which broadcasts to y) of the range's ends, or beyond them, nothing at all.
    Returns o, finite everywhere and meaningful where the weight is positive, and the weight a'(o)
    in [0, ∞), zero where y does not determine o; both shaped as y.
    """
    inside = (y > activation.low + margin) & (y < activation.high - margin)
    bounded = torch.where(inside, y, _inner_value(activation))
    return activation.inverse(bounded), activation.derivative(bounded) * inside


def _inner_value(activation: Activation) -> float:
    """Return a number well inside the range."""
    if activation.high < torch.inf:
        return (activation.low + activation.high) / 2
    return activation.low + 1 if activation.low > -torch.inf else 1.0

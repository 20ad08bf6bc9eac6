"""What is known of the errors of the gradients, as data."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from rconv.linalg.solution import aligned, root_mean_square
from rconv.model.blocks import is_statistic

ARITHMETIC = torch.finfo(torch.float64).eps / 2
"""Relative error that float64 leaves even where nothing was sent with less: one rounding. Those of
sums and of the attack itself are of its size: images come out at 0.1 to 1 times the error that is
expected of it."""


@dataclass(frozen=True)
class Noise:
    """Standard deviation of every gradient entry's error, from what is known of its causes.

    The causes are independent, so that their variances add.

    Parameters
    ----------
    relative : float
        Error per size of the entry itself: the rounding of a floating-point number.
    relative_std : float
        Error per root mean square of the entry's parameter: noise that a client adds.
    absolute : float
        Error whatever the size: what is left of subnormal numbers.
    std : Mapping[str, Tensor | float]
        Parameter name → further standard deviation, in the unit of the gradients; a number, or
        a tensor that broadcasts to (N, *parameter shape). A name that is missing has none. An
        infinite one marks an entry that is not observed, as one that was pruned.
    """

    relative: float = 0.0
    relative_std: float = 0.0
    absolute: float = 0.0
    std: Mapping[str, Tensor | float] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("relative", "relative_std", "absolute"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value < torch.inf:
                raise ValueError(
                    f"the {name} noise is {value!r}: a standard deviation is a finite "
                    "number, 0 or more"
                )

    @staticmethod
    def of(dtype: torch.dtype) -> "Noise":
        """Rounding to a dtype: half the spacing of its normal and of its subnormal numbers."""
        info = torch.finfo(dtype)
        return Noise(relative=info.eps / 2, absolute=info.smallest_normal * info.eps / 2)

    def select(self, index: Tensor | slice, gradients: Mapping[str, Tensor]) -> "Noise":
        """The noise of some of the images, whose gradients are among these of all.

        Standard deviations with an axis N become those of these images; others stay as they are.
        """
        chosen = {}
        for name in self.std.keys() & gradients.keys():
            std = torch.as_tensor(self.std[name], dtype=torch.float64)
            each = std.dim() == gradients[name].dim() and len(std) > 1
            chosen[name] = std[index] if each else std
        return replace(self, std=chosen)

    def entry_std(self, name: str, gradient: Tensor, unit: Tensor | None = None) -> Tensor:
        """Standard deviation of each entry's error, shaped as the gradient and in its unit.

        `unit` (N,) is what the gradients were divided by; 1 if it is not given.
        """
        unit = gradient.new_ones(len(gradient)) if unit is None else unit
        unit, size = aligned(unit, gradient), aligned(root_mean_square(gradient), gradient)
        variance = (self.relative * gradient).square() + (self.relative_std * size).square()
        variance = variance + (self.absolute / unit).square()
        return (variance + (self._declared_std(name, gradient) / unit).square()).sqrt()

    def row_std(self, name: str, gradient: Tensor, unit: Tensor) -> Tensor | None:
        """Standard deviation of each entry's error as the equations weigh it.

        Rounding and added noise are of one size throughout a parameter: a client's sums round at
        the size of their terms, which a small result does not determine. What `std` says is
        each entry's own. None where one number, the level, says it all.
        """
        declared = self._declared_std(name, gradient)
        if declared.numel() <= 1:
            return None
        others = replace(self, std={}).total_relative_std(name, gradient, unit)
        common = aligned(others * root_mean_square(gradient), gradient)
        return torch.hypot(common, declared / aligned(unit, gradient)).expand_as(gradient)

    def total_relative_std(self, name: str, gradient: Tensor, unit: Tensor) -> Tensor:
        """Relative error of one parameter's gradient, both as root mean squares.

        The gradient (N, *parameter shape) was divided by `unit` (N,). Returns (N,), in [0, 1]: 1
        where the gradient is smaller than its error.
        """
        size = root_mean_square(gradient)
        size = torch.where(size > 0, size, torch.inf)
        least = math.hypot(max(self.relative, ARITHMETIC), self.relative_std)
        absolute = self.absolute / unit
        if name in self.std:
            declared = self._declared_std(name, gradient) / aligned(unit, gradient)
            absolute = torch.hypot(absolute, root_mean_square(declared.expand_as(gradient)))
        # Zeros are taken as they are: nothing shows how much of them was rounded away.
        return torch.hypot(absolute / size, absolute.new_tensor(least)).clamp(max=1.0)

    def observed(self, name: str, gradient: Tensor) -> Tensor | None:
        """Which entries are observed, shaped as `gradient`; None where all are."""
        std = torch.as_tensor(self.std.get(name, 0.0), dtype=torch.float64)
        finite = std.to(gradient).isfinite()
        return None if finite.all() else finite.expand_as(gradient)

    def _declared_std(self, name: str, gradient: Tensor) -> Tensor:
        """What `std` says of a parameter; 0 for nothing, and for what is not observed."""
        declared = torch.as_tensor(self.std.get(name, 0.0), dtype=torch.float64).to(gradient)
        return declared.nan_to_num(posinf=0.0)


@dataclass(frozen=True)
class Observed:
    """What an attacker has of N clients: their gradients, and what is known of the errors.

    Gradients of 1e-200, as of a saturated softmax, are sound, but have no square: equations are
    made of gradients `(N, *parameter shape)` that are divided by their largest entry, the `unit`
    (N,); these are float64. `noise` is that of the gradients as they were sent.
    """

    gradients: Mapping[str, Tensor]
    noise: Noise
    unit: Tensor

    @staticmethod
    def of(gradients: Mapping[str, Tensor], noise: Noise) -> "Observed":
        """Gradients as they were sent."""
        first = next(iter(gradients.values()))
        return Observed(gradients, noise, first.new_ones(len(first), dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.unit)

    def select(self, where: Tensor | list[int] | slice) -> "Observed":
        """Those of some of the clients."""
        chosen = {name: gradient[where] for name, gradient in self.gradients.items()}
        return Observed(chosen, self.noise.select(where, self.gradients), self.unit[where])

    def only(self, names: Collection[str]) -> "Observed":
        """The gradients of some of the parameters."""
        chosen = {name: gradient for name, gradient in self.gradients.items() if name in names}
        return replace(self, gradients=chosen)

    def divided(self, unit: Tensor) -> "Observed":
        """The gradients, but not running statistics, divided once more, by (N,)."""
        gradients = {
            name: g if is_statistic(name) else g / aligned(unit.to(g.dtype), g)
            for name, g in self.gradients.items()
        }
        return Observed(gradients, self.noise, self.unit * unit)

    def normalised(self) -> "Observed":
        """The gradients divided by their largest entry."""
        return self.divided(largest_entry(self.gradients))

    def relative_std(self, name: str) -> Tensor:
        """(N,): `Noise.total_relative_std` of one parameter."""
        return self.noise.total_relative_std(name, self.gradients[name], self.unit)

    def std(self, name: str) -> Tensor | None:
        """`Noise.row_std` of one parameter."""
        return self.noise.row_std(name, self.gradients[name], self.unit)

    def every_std(self, name: str) -> Tensor:
        """The same, written out where one number says it all."""
        std, gradient = self.std(name), self.gradients[name]
        if std is not None:
            return std
        common = self.relative_std(name) * root_mean_square(gradient)
        return aligned(common, gradient).expand_as(gradient)

    def seen(self, name: str) -> Tensor | None:
        """`Noise.observed` of one parameter."""
        return self.noise.observed(name, self.gradients[name])


def largest_entry(gradients: Mapping[str, Tensor]) -> Tensor:
    """(N,): size of the largest entry of each client's gradients, 1 where all are zero."""
    chosen = [g for name, g in gradients.items() if not is_statistic(name)]
    unit = torch.stack([g.flatten(1).abs().amax(dim=1).double() for g in chosen]).amax(dim=0)
    return torch.where(unit > 0, unit, 1.0)

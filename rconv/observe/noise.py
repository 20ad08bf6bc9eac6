"""What is known of the errors of the gradients, as data."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from rconv.linalg.solution import root_mean_square
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
        own = {
            name: torch.as_tensor(deviation, dtype=torch.float64)
            for name, deviation in self.std.items()
            if name in gradients
        }
        for name, deviation in own.items():
            if deviation.dim() == gradients[name].dim() and len(deviation) > 1:
                own[name] = deviation[index]
        return replace(self, std=own)

    def entry_std(self, name: str, gradient: Tensor, unit: Tensor | None = None) -> Tensor:
        """Standard deviation of each entry's error, shaped as the gradient and in its unit.

        `unit` (N,) is what the gradients were divided by; 1 if it is not given.
        """
        shape = (-1, *[1] * (gradient.dim() - 1))
        unit = gradient.new_ones(len(gradient)) if unit is None else unit
        mean_square = gradient.flatten(1).square().mean(dim=1)
        variance = self.relative**2 * gradient.square()
        variance += self.relative_std**2 * mean_square.reshape(shape)
        variance += (self.absolute / unit.reshape(shape)) ** 2
        if name in self.std:
            own = self._declared_std(name, gradient)
            variance = variance + (own / unit.reshape(shape)) ** 2
        return variance.sqrt()

    def row_std(self, name: str, gradient: Tensor, unit: Tensor) -> Tensor | None:
        """Standard deviation of each entry's error as the equations weigh it.

        Rounding and added noise are of one size throughout a parameter: a client's sums round at
        the size of their terms, which a small result does not determine. What `std` says is
        each entry's own. None where one number, the level, says it all.
        """
        own = self._declared_std(name, gradient)
        if own.numel() <= 1:
            return None
        shape = (-1, *[1] * (gradient.dim() - 1))
        others = replace(self, std={}).total_relative_std(name, gradient, unit)
        common = (others * root_mean_square(gradient)).reshape(shape)
        return torch.hypot(common, own / unit.reshape(shape)).expand_as(gradient)

    def full_row_std(self, name: str, gradient: Tensor, unit: Tensor) -> Tensor:
        """`row_std`, written out where one number says it all."""
        own = self.row_std(name, gradient, unit)
        if own is not None:
            return own
        common = self.total_relative_std(name, gradient, unit) * root_mean_square(gradient)
        return common.reshape(-1, *[1] * (gradient.dim() - 1)).expand_as(gradient)

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
            shape = (-1, *[1] * (gradient.dim() - 1))
            own = self._declared_std(name, gradient) / unit.reshape(shape)
            absolute = torch.hypot(absolute, root_mean_square(own.expand_as(gradient)))
        # Zeros are taken as they are: nothing shows how much of them was rounded away.
        return torch.hypot(absolute / size, absolute.new_tensor(least)).clamp(max=1.0)

    def observed(self, name: str, gradient: Tensor) -> Tensor | None:
        """Which entries are observed, shaped as `gradient`; None where all are."""
        own = torch.as_tensor(self.std.get(name, 0.0), dtype=torch.float64).to(gradient)
        return None if own.isfinite().all() else own.isfinite().expand_as(gradient)

    def _declared_std(self, name: str, gradient: Tensor) -> Tensor:
        """What `std` says of a parameter; 0 for nothing, and for what is not observed."""
        own = torch.as_tensor(self.std.get(name, 0.0), dtype=torch.float64).to(gradient)
        return own.nan_to_num(posinf=0.0)


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

        def own(gradient: Tensor) -> Tensor:
            return gradient / unit.to(gradient.dtype).reshape(-1, *[1] * (gradient.dim() - 1))

        gradients = {
            name: gradient if is_statistic(name) else own(gradient)
            for name, gradient in self.gradients.items()
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
        """`Noise.full_row_std` of one parameter."""
        return self.noise.full_row_std(name, self.gradients[name], self.unit)

    def seen(self, name: str) -> Tensor | None:
        """`Noise.observed` of one parameter."""
        return self.noise.observed(name, self.gradients[name])


def largest_entry(gradients: Mapping[str, Tensor]) -> Tensor:
    """(N,): size of the largest entry of each client's gradients, 1 where all are zero."""
    own = [g for name, g in gradients.items() if not is_statistic(name)]
    sizes = torch.stack([g.flatten(1).abs().amax(dim=1).double() for g in own])
    unit = sizes.amax(dim=0)
    return torch.where(unit > 0, unit, 1.0)

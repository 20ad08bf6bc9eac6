"""What the recursion carries from map to map: values with their errors, and cotangents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.linalg.equations import TRUST
from rconv.linalg.solution import root_mean_square


@dataclass(frozen=True)
class Told:
    """What is known of one map, for N images.

    Parameters
    ----------
    value : Tensor
        (N, C, H, W), meaningful where `weight` is positive.
    weight : Tensor
        Worth of each value as an equation, 0 where it is not known; shaped as `value`.
    error : Tensor
        (N, C), standard deviation of the values times their weight.
    """

    value: Tensor
    weight: Tensor
    error: Tensor

    @staticmethod
    def whole(value: Tensor, error: Tensor) -> "Told":
        """A map that is known at every position."""
        return Told(value, torch.ones_like(value), error)

    def select(self, where: Tensor | list[int]) -> "Told":
        """The same of some of the images."""
        return Told(self.value[where], self.weight[where], self.error[where])

    def channels(self, first: int, last: int) -> "Told":
        """Channels `first` up to, but without, `last`."""
        cut = slice(first, last)
        return Told(self.value[:, cut], self.weight[:, cut], self.error[:, cut])

    def undone(self, scale: Tensor, shift: Tensor) -> "Told":
        """What this, known as y = scale · x + shift channel by channel, says of x."""
        scale, shift = scale[:, None, None], shift[:, None, None]
        value = (self.value - shift) / torch.where(scale == 0, 1.0, scale)
        return Told(value, self.weight * scale.abs(), self.error)

    def scaled(self, scale: Tensor, shift: Tensor) -> "Told":
        """What this says of y = scale · x + shift."""
        value = self.value * scale[:, None, None] + shift[:, None, None]
        return Told(value, self.weight, self.error * scale.abs())

    def without(self, other: "Told") -> "Told":
        """What this sum says of its other term, `other` being known at every position."""
        error = torch.hypot(self.error, other.error * self.weight.flatten(2).amax(dim=2))
        return Told(self.value - other.value, self.weight, error)

    def plus(self, other: "Told") -> "Told":
        """The sum of two maps that are known at every position."""
        return Told.whole(self.value + other.value, torch.hypot(self.error, other.error))

    def or_better(self, other: "Told") -> "Told":
        """At each position whichever of two accounts of one map has the smaller error."""
        own, new = self.deviation(), other.deviation()
        better = new < own
        value = torch.where(better, other.value, self.value)
        deviation = torch.where(better, new, own)
        known = deviation < torch.inf
        error = torch.where(known, deviation, 0.0).flatten(2).amax(dim=2)
        worth = (error[..., None, None] / deviation).nan_to_num(nan=1.0).clamp(max=TRUST)
        return Told(value, torch.where(known, worth, 0.0), error)

    def deviation(self) -> Tensor:
        """Standard deviation of each value, infinite where none is known; shaped as `value`."""
        known = self.weight > 0
        spread = self.error[..., None, None] / torch.where(known, self.weight, 1.0)
        return torch.where(known, spread, torch.inf)


@dataclass(frozen=True)
class Cotangent:
    """The derivative of the loss by one map, for N images.

    Parameters
    ----------
    value : Tensor
        (N, C, H, W).
    noise : Tensor
        (N,), relative error, both as root mean squares.
    """

    value: Tensor
    noise: Tensor

    @staticmethod
    def total(parts: list["Cotangent"]) -> "Cotangent":
        """The sum over everything that takes a map."""
        if len(parts) == 1:
            return parts[0]
        value = torch.stack([part.value for part in parts]).sum(dim=0)
        spreads = [part.noise * root_mean_square(part.value) for part in parts]
        spread, size = torch.stack(spreads).norm(dim=0), root_mean_square(value)
        noise = (spread / torch.where(size > 0, size, 1.0)).clamp(max=1.0)
        # No sum is known better than the best of its terms.
        return Cotangent(value, noise.maximum(torch.stack([p.noise for p in parts]).amin(dim=0)))

"""What the backward pass starts from and carries from map to map: estimates and cotangents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.attack.report import LayerReport
from rconv.linalg.solution import root_mean_square
from rconv.linalg.system import MAX_WEIGHT_RATIO
from rconv.observe.noise import Noise, Observed


@dataclass(frozen=True)
class Estimate:
    """What is known of one map, for N images.

    Parameters
    ----------
    value : Tensor
        (N, C, H, W): the map where `weight` is positive; where `side` is not 0, its bound.
    weight : Tensor
        Weight of each value as an equation, 0 where it is not known; shaped as `value`.
    std : Tensor
        (N, C), standard deviation of the values times their weight.
    side : Tensor or None
        1 where the map is at most `value`, -1 where it is at least `value`, as behind a ReLU that
        is silent; else 0. Shaped as `value`; None for 0 everywhere.
    """

    value: Tensor
    weight: Tensor
    std: Tensor
    side: Tensor | None = None

    @staticmethod
    def whole(value: Tensor, std: Tensor) -> "Estimate":
        """A map that is known at every position."""
        return Estimate(value, torch.ones_like(value), std)

    @staticmethod
    def nothing(like: Tensor) -> "Estimate":
        """A map of which nothing is known."""
        zero = torch.zeros_like(like)
        return Estimate(zero, zero, zero.flatten(2).amax(dim=2))

    def select(self, where: Tensor | list[int]) -> "Estimate":
        """The same of some of the images."""
        return self._each(lambda own: own[where])

    def channels(self, first: int, last: int) -> "Estimate":
        """Channels `first` up to, but without, `last`."""
        return self._each(lambda own: own[:, first:last])

    def undone(self, scale: Tensor, shift: Tensor) -> "Estimate":
        """What this, known as y = scale · x + shift channel by channel, implies for x."""
        scale, shift = scale[:, None, None], shift[:, None, None]
        value = (self.value - shift) / torch.where(scale == 0, 1.0, scale)
        side = None if self.side is None else self.side * scale.sign()
        return Estimate(value, self.weight * scale.abs(), self.std, side)

    def without(self, other: "Estimate") -> "Estimate":
        """What this sum implies for its other term, `other` being known at every position."""
        std = torch.hypot(self.std, other.std * self.weight.flatten(2).amax(dim=2))
        return Estimate(self.value - other.value, self.weight, std, self.side)

    def or_better(self, other: "Estimate") -> "Estimate":
        """At each position whichever of two accounts of one map has the smaller error."""
        own, new = self.entry_std(), other.entry_std()
        better = new < own
        value = torch.where(better, other.value, self.value)
        deviation = torch.where(better, new, own)
        known = deviation < torch.inf
        std = torch.where(known, deviation, 0.0).flatten(2).amax(dim=2)
        weight = (std[..., None, None] / deviation).nan_to_num(nan=1.0)
        weight = weight.clamp(max=MAX_WEIGHT_RATIO)
        sides = [torch.zeros_like(value) if s is None else s for s in (self.side, other.side)]
        bounded = sides[0] == 0  # one bound per entry: the first that there is
        value = torch.where(known | ~bounded, value, other.value)
        side = torch.where(bounded, sides[1], sides[0]) * ~known
        return Estimate(value, torch.where(known, weight, 0.0), std, side)

    def entry_std(self) -> Tensor:
        """Standard deviation of each value, infinite where none is known; shaped as `value`."""
        known = self.weight > 0
        spread = self.std[..., None, None] / torch.where(known, self.weight, 1.0)
        return torch.where(known, spread, torch.inf)

    def relative_std(self) -> Tensor:
        """(N,): relative error where the map is known, as root mean squares; 1 nowhere."""
        used = self.weight > 0
        size = (self.value * used).flatten(1).norm(dim=1)
        spread = torch.where(used, self.entry_std(), 0.0)
        relative = spread.flatten(1).norm(dim=1) / size
        return relative.nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0)

    @property
    def some(self) -> Tensor:
        """(N,), bool, whether anything is known."""
        return (self.weight > 0).flatten(1).any(dim=1)

    @property
    def all(self) -> Tensor:
        """(N,), bool, whether everything is known."""
        return (self.weight > 0).flatten(1).all(dim=1)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Estimate":
        side = None if self.side is None else function(self.side)
        return Estimate(function(self.value), function(self.weight), function(self.std), side)


@dataclass(frozen=True)
class Cotangent:
    """The derivative of the loss by one map, for N images.

    Parameters
    ----------
    value : Tensor
        (N, C, H, W).
    relative_std : Tensor
        (N,), relative error, both as root mean squares.
    """

    value: Tensor
    relative_std: Tensor

    def select(self, where: Tensor | list[int]) -> "Cotangent":
        """The same of some of the images."""
        return Cotangent(self.value[where], self.relative_std[where])

    @staticmethod
    def total(parts: list["Cotangent"]) -> "Cotangent":
        """The sum over everything that takes a map."""
        if len(parts) == 1:
            return parts[0]
        value = torch.stack([part.value for part in parts]).sum(dim=0)
        spreads = [part.relative_std * root_mean_square(part.value) for part in parts]
        spread, size = torch.stack(spreads).norm(dim=0), root_mean_square(value)
        noise = (spread / torch.where(size > 0, size, 1.0)).clamp(max=1.0)
        # No sum is known better than the best of its terms.
        least = torch.stack([part.relative_std for part in parts]).amin(dim=0)
        return Cotangent(value, noise.maximum(least))


@dataclass(frozen=True)
class Separated:
    """The F samples of a batch of B that a hidden layer separates.

    Parameters
    ----------
    complete : bool
        Whether these samples explain the whole gradient.
    count : Tensor
        (F,), int64, how many times each of them is there.
    certain : Tensor
        (F,), bool, whether it is certified.
    """

    complete: bool
    count: Tensor
    certain: Tensor


@dataclass(frozen=True)
class Start:
    """What an entry point determines of a network's last node: M systems of B samples each.

    Parameters
    ----------
    observed : Observed
        The gradients of the client that each system is to explain, summed over its samples; M of
        them, normalised.
    client : Tensor
        (M,), int64, this client: several systems of one are candidates.
    estimate : Estimate or None
        The map, of M·B samples; None where it is not known.
    cotangent : Cotangent
        The derivative of each sample's loss by it.
    report : LayerReport
        How well this is known.
    linear : str
        A layer the derivative by whose output is known as well: the certificate starts there.
    derivative : Tensor
        This derivative, (M·B, K), or (M·B, D, Ho, Wo) of a convolution.
    solved : tuple of int, Estimate and LayerReport, or None
        Another node whose map is known besides, and how well.
    labels : Tensor or None
        (M·B,), int64, where the entry point needs the labels itself.
    separated : Separated or None
        Where a batch is entered at a hidden layer; B is then the number of samples found there.
    """

    observed: Observed
    client: Tensor
    estimate: Estimate | None
    cotangent: Cotangent
    report: LayerReport
    linear: str
    derivative: Tensor
    solved: tuple[int, Estimate, LayerReport] | None = None
    labels: Tensor | None = None
    separated: Separated | None = None

    @property
    def samples(self) -> int:
        """B."""
        return len(self.cotangent.value) // len(self.client)


def channel_errors(value: Tensor, error: Tensor, kinds: Sequence[str], noise: Noise) -> Tensor:
    """Standard deviation of each channel's values, (N, C).

    Gradient constraints solve every channel for itself, and where their error is rounding, it is
    relative to the channel. Other equations, and noise of one size, share it among all.
    """
    rounding = not noise.relative_std and not noise.std
    apart = torch.tensor([rounding and kind == "gradient" for kind in kinds], device=value.device)
    own = value.flatten(2).square().mean(dim=2).sqrt()
    shared = root_mean_square(value)[:, None].expand_as(own)
    return error[:, None] * torch.where(apart[:, None], own, shared)

"""What every solver returns: a value, and how good it is."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

PROBES = 4
POWERS = 4
CONDITION_LIMIT = 1e7
"""Beyond it the normal equations, whose condition is the square, lose every digit."""


CONVERGED, STALLED, DIRECT = "converged", "stalled", "direct"
"""What a solution's status is: the next correction would be rounding; corrections stopped
shrinking before that; or there is nothing to correct in a solution by singular values."""


@dataclass(frozen=True)
class Solution:
    """A least-squares solution of N systems and what is known of its quality.

    Parameters
    ----------
    value : Tensor
        (N, n, k), the solution; of minimum norm where the rank is short.
    rank : Tensor
        (N,) int64, numerical rank, at most n.
    condition : Tensor
        (N,), ratio of the largest to the smallest singular value that counts. An estimate
        (a lower bound, mostly within a factor of two) where the rank is full.
    amplification : Tensor
        (N,), expected relative error of x for a relative error of one in b, both as root
        mean squares and for errors that are independent (an estimate).
    residual : Tensor
        (N,), ‖b - A x‖ / ‖b‖.
    error : Tensor
        (N,), expected relative error of x, both as root mean squares, for independent errors of
        the rows as large as the equations say; 0 where they say nothing.
    iterations : Tensor
        (N,), corrections that refined it.
    method : tuple of str
        N names of factorisations.
    status : tuple of str
        N times `CONVERGED`, `STALLED` or `DIRECT`.
    """

    value: Tensor
    rank: Tensor
    condition: Tensor
    amplification: Tensor
    residual: Tensor
    error: Tensor
    iterations: Tensor
    method: tuple[str, ...]
    status: tuple[str, ...]

    @staticmethod
    def concatenate(solutions: list["Solution"]) -> "Solution":
        """Several solutions, one after the other."""
        parts = (tuple(getattr(s, f.name) for s in solutions) for f in fields(Solution))
        return Solution(*map(join, parts))

    def select(self, where: Tensor | list[int]) -> "Solution":
        """The solutions of some of the systems."""
        return Solution(*(index(getattr(self, f.name), where) for f in fields(Solution)))

    def split(self) -> list["Solution"]:
        """The solutions one by one."""
        return [self.select([i]) for i in range(len(self.rank))]

    def per_sample(self, samples: int) -> "Solution":
        """One entry for every sample of a joint solution of B samples each, (N·B,).

        What is open in the joint system may be open in each of its samples.
        """
        if samples == 1:
            return self
        count, joint = len(self.value), self.value.shape[1]
        value = self.value.reshape(count * samples, joint // samples, *self.value.shape[2:])
        sizes = root_mean_square(value).clamp(min=1e-300)
        growth = root_mean_square(self.value).repeat_interleave(samples) / sizes
        rank = (value.shape[1] - (joint - self.rank)).clamp(min=0)
        same = {f.name: getattr(self, f.name) for f in fields(Solution)}
        for name, field in same.items():
            each = [i for i in range(count) for _ in range(samples)]
            same[name] = index(field, each)
        same |= {"value": value, "rank": rank.repeat_interleave(samples)}
        same["amplification"] = same["amplification"] * growth
        return Solution(**(same | {"error": same["error"] * growth}))

    def replace(self, where: Tensor | int, other: "Solution") -> "Solution":
        """This solution with the systems at `where` taken from `other`."""
        return Solution(
            *(put(getattr(self, f.name), where, getattr(other, f.name))
              for f in fields(Solution))
        )  # fmt: skip


def relative(residual: Tensor, rhs: Tensor) -> Tensor:
    """Norm of `residual` over that of `rhs`, per leading index; 0 where both are 0."""
    size = rhs.flatten(1).norm(dim=1)
    return residual.flatten(1).norm(dim=1) / torch.where(size > 0, size, 1.0)


def rank_floor(tolerance: float | Tensor) -> Tensor:
    """Singular values up to this share of the largest do not count towards the rank.

    Below the relative error `tolerance` of the equations a direction drowns in it; and the
    computation itself, in float64, leaves some 100 roundings.
    """
    tolerance = torch.as_tensor(tolerance, dtype=torch.float64)
    return tolerance.clamp(min=100 * torch.finfo(torch.float64).eps)


def root_mean_square(tensor: Tensor) -> Tensor:
    """Per leading index: (N, …) → (N,)."""
    return tensor.flatten(1).square().mean(dim=1).sqrt()


def aligned(values: Tensor, like: Tensor) -> Tensor:
    """Values per leading index, (N,), shaped to broadcast to `like`, (N, …)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def largest_of_noise(deviation: Tensor, rows: int, columns: int) -> Tensor:
    """Largest singular value that errors have in a matrix, independent and of one size σ.

    It is σ (√rows + √columns), in the limit of large matrices; σ is the root mean square of the
    entries' standard deviations.
    """
    return deviation.square().mean().sqrt() * (rows**0.5 + columns**0.5)


@dataclass(frozen=True)
class Spectrum:
    """Largest over smallest singular value, and mean of 1 / σ², of N matrices: (N,) each."""

    condition: Tensor
    inverse_square: Tensor

    @staticmethod
    def estimate(
        gram: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], like: Tensor
    ) -> "Spectrum":
        """By power iteration on AᵀA and on its inverse, from a few random vectors.

        Both take (N, n, PROBES); `like` (N, n) has their shape, dtype and device. The condition is
        a lower bound, mostly within a factor of two, and NaN or inf where the inverse has broken
        down.
        """
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(like.shape[-1], PROBES, generator=generator, dtype=like.dtype)
        start = (start / start.norm(dim=0)).to(like.device).expand(len(like), -1, -1)
        largest, _ = _power(gram, start)
        smallest, mean = _power(inverse, start)
        return Spectrum((largest * smallest).sqrt(), mean)

    def amplification(self, rhs: Tensor, value: Tensor) -> Tensor:
        """(N,), expected size of the solution's error per error of `rhs`, each relative to its own.

        With the standard deviation of the rows in place of `rhs`, the expected relative error
        itself. Rows of zeros are not used and do not count.
        """
        squares, used = rhs.flatten(1).square().sum(dim=1), (rhs != 0).flatten(1).sum(dim=1)
        size = (squares / used.clamp(min=1)).sqrt()
        ratio = size / root_mean_square(value).clamp(min=1e-300)
        return self.inverse_square.clamp(min=0).sqrt() * ratio


def _power(operator: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and mean eigenvalue of a symmetric operator, estimated: (N,) each."""
    image = operator(v)
    mean = (v * image).sum(dim=1).mean(dim=1)
    for _ in range(POWERS - 1):
        image = operator(image / image.norm(dim=1, keepdim=True))
    return image.norm(dim=1).amax(dim=1), mean


def index(field: Tensor | tuple, where: Tensor | list[int]) -> Tensor | tuple:
    """Some of the entries."""
    if isinstance(field, tuple):
        return tuple(field[i] for i in torch.as_tensor(where).tolist())
    return field[where]


def join(parts: tuple) -> Tensor | tuple:
    """The entries of several batches, one after the other."""
    if isinstance(parts[0], tuple):
        return sum(parts, ())
    return torch.cat(parts)


def put(field: Tensor | tuple, where: Tensor | int, other: Tensor | tuple) -> Tensor | tuple:
    """The entries with those at `where` taken from `other`, in order."""
    if isinstance(field, tuple):
        changed = list(field)
        for i, entry in zip(torch.as_tensor(where).reshape(-1).tolist(), other, strict=True):
            changed[i] = entry
        return tuple(changed)
    changed = field.clone()
    changed[where] = other
    return changed

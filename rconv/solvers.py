"""Least squares that says how good it is.

Gradient constraints are small and differ per image: batched normal equations, Cholesky and
iterative refinement, with an SVD for the few that are short of rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

REFINEMENTS = 2
REFINED = 1e-8
"""A correction below this share of the solution leaves an error of its square: the last one."""
PROBES = 4
POWERS = 4
CONDITION_LIMIT = 1e7
"""Beyond it the normal equations, whose condition is the square, lose every digit."""


@dataclass(frozen=True)
class Solution:
    """A least-squares solution for N images and what is known of its quality.

    Attributes
    ----------
    value : (N, n, k), the solution; of minimum norm where the rank is short.
    rank : (N,) int64, numerical rank, at most n.
    condition : (N,), ratio of the largest to the smallest singular value that counts. An
        estimate (a lower bound, mostly within a factor of two) where the rank is full.
    amplification : (N,), expected relative error of x for a relative error of one in b, both
        as root mean squares and for errors that are independent (an estimate).
    residual : (N,), ‖b - A x‖ / ‖b‖.
    """

    value: Tensor
    rank: Tensor
    condition: Tensor
    amplification: Tensor
    residual: Tensor

    @staticmethod
    def concatenate(solutions: list["Solution"]) -> "Solution":
        """Several images' solutions, one after the other."""
        return Solution(
            *(torch.cat([getattr(s, f.name) for s in solutions]) for f in fields(Solution))
        )

    def select(self, index: Tensor) -> "Solution":
        """The solutions of some of the images."""
        return Solution(*(getattr(self, f.name)[index] for f in fields(Solution)))

    def replace(self, where: Tensor | int, other: "Solution") -> "Solution":
        """This solution with the images at `where` taken from `other`."""
        changed = []
        for field in fields(Solution):
            tensor = getattr(self, field.name).clone()
            tensor[where] = getattr(other, field.name)
            changed.append(tensor)
        return Solution(*changed)


def relative(residual: Tensor, rhs: Tensor) -> Tensor:
    """Norm of `residual` over that of `rhs`, per leading index; 0 where both are 0."""
    size = rhs.flatten(1).norm(dim=1)
    return residual.flatten(1).norm(dim=1) / torch.where(size > 0, size, 1.0)


def rank_floor(tolerance: float) -> float:
    """Singular values up to this share of the largest do not count towards the rank.

    Below the relative error `tolerance` of the equations a direction drowns in it; and the
    computation itself, in float64, leaves some 100 roundings.
    """
    return max(tolerance, 100 * torch.finfo(torch.float64).eps)


def root_mean_square(tensor: Tensor) -> Tensor:
    """Per leading index: (N, …) → (N,)."""
    return tensor.flatten(1).square().mean(dim=1).sqrt()


def least_squares(matrix: Tensor, rhs: Tensor, tolerance: float) -> Solution:
    """Solve A x = b for a batch of small dense systems.

    Parameters
    ----------
    matrix : A, (N, m, n).
    rhs : b, (N, m, k).
    tolerance : relative rounding error of A and b, which sets the `rank_floor`.

    Returns
    -------
    Solution with value (N, n, k).
    """
    gram = matrix.mT @ matrix
    factor, info = torch.linalg.cholesky_ex(gram)
    spectrum = Spectrum.estimate(
        lambda v: gram @ v, lambda v: torch.cholesky_solve(v, factor), gram[..., 0]
    )
    value = torch.cholesky_solve(matrix.mT @ rhs, factor)
    for _ in range(REFINEMENTS):
        step = torch.cholesky_solve(matrix.mT @ (rhs - matrix @ value), factor)
        value = value + step
        if (relative(step, value) <= REFINED).all():
            break
    solution = Solution(
        value,
        torch.full(gram.shape[:1], gram.shape[-1], device=gram.device),
        spectrum.condition,
        spectrum.amplification(rhs, value),
        relative(rhs - matrix @ value, rhs),
    )
    limit = min(CONDITION_LIMIT, 1 / rank_floor(tolerance))
    failed = (info != 0) | ~(spectrum.condition < limit)
    for i in failed.nonzero()[:, 0].split(1):
        solution = solution.replace(i, minimum_norm(matrix[i], rhs[i], tolerance))
    return solution


def minimum_norm(matrix: Tensor, rhs: Tensor, tolerance: float) -> Solution:
    """`least_squares` by SVD: exact rank, solution of minimum norm, some 50 times slower."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    counts = s > s[:, :1] * rank_floor(tolerance)
    inverse = torch.where(counts, 1 / torch.where(counts, s, 1.0), 0.0)
    value = vt.mT @ (inverse[..., None] * (u.mT @ rhs))
    spectrum = Spectrum(s[:, 0] * inverse.amax(dim=1), inverse.square().mean(dim=1))
    return Solution(
        value,
        counts.sum(dim=1),
        torch.where(counts.any(dim=1), spectrum.condition, torch.inf),
        spectrum.amplification(rhs, value),
        relative(rhs - matrix @ value, rhs),
    )


def independent(parts: list[Solution], sizes: list[Tensor]) -> Solution:
    """One solution from those of systems that share neither equation nor unknown.

    Parameters
    ----------
    parts : their solutions, values (N, n_i, k).
    sizes : (N,) each, norms of their right-hand sides.

    Returns
    -------
    Solution with value (N, Σ n_i, k); its condition is the worst one, and its amplification is
    for errors relative to each part's own right-hand side.
    """
    values = [part.value for part in parts]
    norms = torch.stack([value.flatten(1).norm(dim=1) for value in values])
    return Solution(
        torch.cat(values, dim=1),
        torch.stack([part.rank for part in parts]).sum(dim=0),
        torch.stack([part.condition for part in parts]).amax(dim=0),
        _weighted_mean(torch.stack([part.amplification for part in parts]), norms),
        _weighted_mean(torch.stack([part.residual for part in parts]), torch.stack(sizes)),
    )


def _weighted_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """Root mean square over the first axis, weighted by the squares of `sizes`."""
    total = sizes.norm(dim=0)
    return (values * sizes).norm(dim=0) / torch.where(total > 0, total, 1.0)


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of A say of a solution, for N matrices.

    Attributes
    ----------
    condition : (N,), largest over smallest.
    inverse_square : (N,), mean of 1 / σ².
    """

    condition: Tensor
    inverse_square: Tensor

    @staticmethod
    def estimate(
        gram: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], like: Tensor
    ) -> "Spectrum":
        """Power iteration on AᵀA and on its inverse, from a few random vectors.

        Parameters
        ----------
        gram, inverse : (N, n, PROBES) → AᵀA, or its inverse, times the columns.
        like : (N, n), for shape, dtype and device.

        Returns
        -------
        Spectrum; the condition is a lower bound, mostly within a factor of two, and NaN or
        inf where the inverse has broken down.
        """
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(like.shape[-1], PROBES, generator=generator, dtype=like.dtype)
        start = (start / start.norm(dim=0)).to(like.device).expand(len(like), -1, -1)
        largest, _ = _power(gram, start)
        smallest, mean = _power(inverse, start)
        return Spectrum((largest * smallest).sqrt(), mean)

    def amplification(self, rhs: Tensor, value: Tensor) -> Tensor:
        """(N,), expected relative error of the solution per relative error of `rhs`."""
        ratio = root_mean_square(rhs) / root_mean_square(value).clamp(min=1e-300)
        return self.inverse_square.clamp(min=0).sqrt() * ratio


def _power(operator: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and mean eigenvalue of a symmetric operator, estimated: (N,) each."""
    image = operator(v)
    mean = (v * image).sum(dim=1).mean(dim=1)
    for _ in range(POWERS - 1):
        image = operator(image / image.norm(dim=1, keepdim=True))
    return image.norm(dim=1).amax(dim=1), mean

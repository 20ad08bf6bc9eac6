"""Many small dense systems at once: batched normal equations with refinement.

An SVD takes the few that are short of rank.
"""

import torch
from torch import Tensor

from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, Solution, Spectrum, rank_floor, relative


def least_squares(matrix: Tensor, rhs: Tensor, tolerance: float | Tensor) -> Solution:
    """Solve A x = b for a batch of small dense systems.

    Parameters
    ----------
    matrix : Tensor
        A, (N, m, n), float64.
    rhs : Tensor
        b, (N, m, k), float64.
    tolerance : float or Tensor
        Relative error of A and b, one for all or (N,), which sets the `rank_floor`.

    Returns
    -------
    Solution
        With value (N, n, k); of minimum norm where the rank is short.
    """
    gram = matrix.mT @ matrix
    factor, info = torch.linalg.cholesky_ex(gram)
    spectrum = Spectrum.estimate(
        lambda v: gram @ v, lambda v: torch.cholesky_solve(v, factor), gram[..., 0]
    )

    def correction(value: Tensor) -> Tensor:
        return torch.cholesky_solve(matrix.mT @ (rhs - matrix @ value), factor)

    value = refine(correction, torch.cholesky_solve(matrix.mT @ rhs, factor))
    solution = Solution(
        value,
        torch.full(gram.shape[:1], gram.shape[-1], device=gram.device),
        spectrum.condition,
        spectrum.amplification(rhs, value),
        relative(rhs - matrix @ value, rhs),
    )
    tolerance = torch.as_tensor(tolerance).to(matrix).expand(len(matrix))
    limit = (1 / rank_floor(tolerance)).clamp(max=CONDITION_LIMIT)
    failed = (info != 0) | ~(spectrum.condition < limit)
    for i in failed.nonzero()[:, 0].split(1):
        solution = solution.replace(i, minimum_norm(matrix[i], rhs[i], tolerance[i]))
    return solution


def minimum_norm(matrix: Tensor, rhs: Tensor, tolerance: float | Tensor) -> Solution:
    """`least_squares` by SVD: exact rank, solution of minimum norm, some 50 times slower.

    Parameters
    ----------
    matrix, rhs, tolerance
        As `least_squares` takes them.

    Returns
    -------
    Solution
        With value (N, n, k).
    """
    floor = rank_floor(torch.as_tensor(tolerance).to(matrix)).reshape(-1, 1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    counts = s > s[:, :1] * floor
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
    parts : list of Solution
        Their solutions, values (N, n_i, k).
    sizes : list of Tensor
        (N,) each, norms of their right-hand sides.

    Returns
    -------
    Solution
        With value (N, Σ n_i, k); its condition is the worst one, and its amplification is for
        errors relative to each part's own right-hand side.
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

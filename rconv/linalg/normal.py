"""Many small dense systems at once: batched normal equations with refinement.

An SVD takes the few that are short of rank.
"""

import torch
from torch import Tensor

from rconv.linalg.equations import DenseRows, residual
from rconv.linalg.refine import refine
from rconv.linalg.solution import (
    CONDITION_LIMIT,
    DIRECT,
    Solution,
    Spectrum,
    rank_floor,
    relative,
)


def least_squares(equations: DenseRows, tolerance: float | Tensor) -> Solution:
    """Solve a batch of small dense systems.

    Parameters
    ----------
    equations : DenseRows
        N systems of m rows, n unknowns and k columns.
    tolerance : float or Tensor
        Relative error of A and b, one for all or (N,), which sets the `rank_floor`.

    Returns
    -------
    Solution
        With value (N, n, k); of minimum norm where the rank is short.
    """
    gram = equations.normal_matrix()
    factor, info = torch.linalg.cholesky_ex(gram)
    spectrum = Spectrum.estimate(
        lambda v: gram @ v, lambda v: torch.cholesky_solve(v, factor), gram[..., 0]
    )

    def correction(value: Tensor) -> Tensor:
        return torch.cholesky_solve(equations.adjoint(residual(equations, value)), factor)

    start = torch.cholesky_solve(equations.adjoint(equations.rhs), factor)
    value, iterations, status = refine(correction, start)
    rank = torch.full(gram.shape[:1], gram.shape[-1], device=gram.device)
    solution = _solution(equations, value, rank, spectrum, iterations, "Cholesky", status)
    tolerance = torch.as_tensor(tolerance).to(gram).expand(len(gram))
    limit = (1 / rank_floor(tolerance)).clamp(max=CONDITION_LIMIT)
    failed = (info != 0) | ~(spectrum.condition < limit)
    for i in failed.nonzero()[:, 0].split(1):
        solution = solution.replace(i, minimum_norm(equations.select(i), tolerance[i]))
    return solution


def minimum_norm(equations: DenseRows, tolerance: float | Tensor) -> Solution:
    """`least_squares` by SVD: exact rank, solution of minimum norm, some 50 times slower.

    Parameters
    ----------
    equations, tolerance
        As `least_squares` takes them.

    Returns
    -------
    Solution
        With value (N, n, k).
    """
    matrix, rhs = equations.matrix, equations.rhs
    floor = rank_floor(torch.as_tensor(tolerance).to(matrix)).reshape(-1, 1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    counts = s > s[:, :1] * floor
    inverse = torch.where(counts, 1 / torch.where(counts, s, 1.0), 0.0)
    value = vt.mT @ (inverse[..., None] * (u.mT @ rhs))
    spectrum = Spectrum(s[:, 0] * inverse.amax(dim=1), inverse.square().mean(dim=1))
    condition = torch.where(counts.any(dim=1), spectrum.condition, torch.inf)
    spectrum, none = Spectrum(condition, spectrum.inverse_square), torch.zeros_like(counts[:, 0])
    status = (DIRECT,) * len(value)
    return _solution(equations, value, counts.sum(dim=1), spectrum, none.long(), "SVD", status)


def _solution(
    equations: DenseRows,
    value: Tensor,
    rank: Tensor,
    spectrum: Spectrum,
    iterations: Tensor,
    method: str,
    status: tuple[str, ...],
) -> Solution:
    """A value with what follows from its spectrum and from the equations."""
    # What is broadcast to b has the mean of b's shape already.
    deviation, _ = torch.broadcast_tensors(equations.deviation, value.new_empty(len(value), 1, 1))
    return Solution(
        value,
        rank,
        spectrum.condition,
        spectrum.amplification(equations.rhs, value),
        relative(residual(equations, value), equations.rhs),
        spectrum.amplification(deviation, value),
        iterations,
        (method,) * len(value),
        status,
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
        _weighted_mean(torch.stack([part.error for part in parts]), norms),
        torch.stack([part.iterations for part in parts]).amax(dim=0),
        tuple(map(_all, zip(*(part.method for part in parts), strict=True))),
        tuple(map(_all, zip(*(part.status for part in parts), strict=True))),
    )


def _all(words: tuple[str, ...]) -> str:
    """The words that occur, each once."""
    return " and ".join(dict.fromkeys(words))


def _weighted_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """Root mean square over the first axis, weighted by the squares of `sizes`."""
    total = sizes.norm(dim=0)
    return (values * sizes).norm(dim=0) / torch.where(total > 0, total, 1.0)

"""Equations that are known by their products alone, solved by LSMR (Fong and Saunders, 2011).

No matrix is stored. What a factorisation would tell of rank and noise is told by two further runs
on random numbers: rows made of a random vector, whose solution from zero lacks what the equations
do not see of it; and rows of nothing but random errors.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from threadpoolctl import threadpool_limits
from torch import Tensor

from rconv.linalg.equations import Equations, residual
from rconv.linalg.refine import NEGLIGIBLE, refine
from rconv.linalg.solution import POWERS, STALLED, Solution, relative

ACCURACY = 1e-9
"""Of one run, relative: a second run on what is left of the rows finds the other digits, with no
more iterations than one run to the end, and without its rounding."""

ITERATIONS = 3_000
"""At most, of one run. What has not converged by then is not corrected, and counts as open."""

SEEN = 1e-5
"""Of a random vector of deviation 1, a direction that is open keeps a normal number: less than
this once in 100,000 times. What a run leaves of directions that are seen is below it where LSMR
has converged to 10 digits in some thousand unknowns."""


def solve_iterative(system: Equations, samples: int = 1) -> Solution:
    """Weighted least squares, without a matrix.

    Parameters
    ----------
    system : Equations
        One, N = k = 1. Its rows should be weighed by their errors.
    samples : int
        B: the unknown is that of so many samples, one after the other.

    Returns
    -------
    Solution
        One for each sample, value (B, n / B, 1); of minimum norm where the rank is short. The
        rank is that of a random vector: a direction that is open is missed once in 100,000
        times, and where several are, their number is right up to a factor. The condition is a
        lower bound. The error is measured on a random one.
    """
    run = _runs(system)
    x, iterations, condition, status = run(system.rhs)
    generator = torch.Generator().manual_seed(0)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like)

    z = random(x)
    told, needed, *_ = run(system.product(z), once=True)
    left = _unseen(z, told, samples)
    if (left > SEEN**2).any() and needed < ITERATIONS:
        left = _unseen(z, run(system.product(z))[0], samples)
    opened = torch.where(left > SEEN**2, left.ceil(), 0.0).long()
    errors = system.deviation.expand_as(system.rhs)
    shift = run(random(errors) * errors, once=True)[0]
    condition = max(condition, _condition(system, z, shift))
    value, own = x.reshape(samples, -1, 1), relative(residual(system, x), system.rhs)
    error = shift.reshape(samples, -1).norm(dim=1) / value.flatten(1).norm(dim=1).clamp(min=1e-300)
    # Products round, too.
    n, error = value.shape[1], error.clamp(min=NEGLIGIBLE)
    return Solution(
        value,
        n - opened.clamp(max=n),
        torch.full_like(error, condition),
        error / relative(errors, system.rhs).clamp(min=1e-300),
        own.expand(samples),
        error,
        torch.full_like(opened, iterations),
        ("LSMR",) * samples,
        (status,) * samples,
    )


def _unseen(z: Tensor, told: Tensor, samples: int) -> Tensor:
    """(B,): squared norm of what the rows do not tell of each sample's part of a vector."""
    return (z - told).reshape(samples, -1).square().sum(dim=1)


def _runs(system: Equations) -> Callable[..., tuple[Tensor, int, float, str]]:
    """LSMR for right-hand sides: solution (1, n, 1), iterations, condition and status."""
    like = system.rhs

    def torched(function: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        def applied(v: np.ndarray) -> np.ndarray:
            return function(torch.from_numpy(v).to(like).reshape(1, -1, 1)).flatten().cpu().numpy()

        return applied

    operator = LinearOperator(
        (like.shape[1], system.unknowns),
        torched(system.product),
        torched(system.adjoint),
        dtype=np.float64,
    )

    def run(rhs: Tensor, *, once: bool = False) -> tuple[Tensor, int, float, str]:
        counts, conditions = [], []

        def solved(rows: Tensor) -> Tensor:
            rows = rows.flatten().cpu().numpy()
            # The threads of NumPy's short vectors and of PyTorch's convolutions would wait for each
            # other: on two cores 14 times slower.
            with threadpool_limits(1, "blas"):
                found = lsmr(operator, rows, 0.0, ACCURACY, ACCURACY, 0.0, ITERATIONS)
            x, count, condition = found[0], found[2], found[6]
            counts.append(count)
            conditions.append(condition)
            return torch.from_numpy(x).to(like).reshape(1, -1, 1)

        x, status = solved(rhs), (STALLED,)
        if not once and counts[0] < ITERATIONS:
            x, _, status = refine(lambda x: solved(rhs - system.product(x)), x)
        return x, sum(counts), max(conditions), status[0]

    return run


def _condition(system: Equations, strong: Tensor, weak: Tensor) -> float:
    """A lower bound: by power iteration from one vector, and by the stretch of a weak one."""
    for _ in range(POWERS):
        strong = system.adjoint(system.product(strong / strong.norm()))
    stretch = float(system.product(weak).norm() / weak.norm().clamp(min=1e-300))
    return float(strong.norm()) ** 0.5 / stretch if stretch > 0 else 0.0

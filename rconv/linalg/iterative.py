"""Equations that are known by their products alone, solved by LSMR (Fong and Saunders, 2011).

No matrix is stored. What a factorisation would tell of rank and noise is told by two further runs
on random numbers: rows made of a random vector, whose solution from zero lacks what the equations
do not see of it; and rows of nothing but random errors.
"""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from rconv.linalg.equations import Equations, residual
from rconv.linalg.solution import CONVERGED, POWERS, STALLED, Solution, relative

TOLERANCE, COARSE = 1e-14, 1e-9
"""LSMR's own, of rows without errors; where they have errors, a hundredth of these, up to COARSE."""

ITERATIONS = 6_000
"""At most. What has not converged by then counts as open."""

SEEN = 1e-5
"""Of a random vector of deviation 1, a direction that is open keeps a normal number: less than
this once in 100,000 times. What a run leaves of directions that are seen is below it where LSMR
has converged to 10 digits in some thousand unknowns."""


def solve_iterative(system: Equations, tolerance: float, samples: int = 1) -> Solution:
    """Weighted least squares, without a matrix.

    Parameters
    ----------
    system : Equations
        One, N = k = 1. Its rows should be weighed by their errors.
    tolerance : float
        Relative noise of the equations.
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
    n, m = system.unknowns, system.rhs.shape[1]
    like = system.rhs

    def torched(function):
        return lambda v: function(torch.from_numpy(v).to(like).reshape(1, -1, 1)).flatten().cpu()

    operator = LinearOperator(
        (m, n), torched(system.product), torched(system.adjoint), dtype=np.float64
    )
    exact = min(max(TOLERANCE, tolerance / 100), COARSE)

    def run(rhs: Tensor, accuracy: float, most: int = ITERATIONS):
        b = rhs.flatten().cpu().numpy()
        found = lsmr(operator, b, atol=accuracy, btol=accuracy, conlim=0.0, maxiter=most)
        return torch.from_numpy(found[0]).to(like).reshape(samples, -1), *found[1:]

    x, stop, iterations, _, _, _, condition, _ = run(system.rhs, exact)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, n, 1, generator=generator, dtype=like.dtype).to(like)
    told, _, needed, *_ = run(system.product(z), TOLERANCE)
    left = (z.reshape(samples, -1) - told).square().sum(dim=1)
    opened = torch.where(left > SEEN**2, left.ceil(), 0.0).long()
    errors = system.deviation
    e = torch.randn(errors.shape, generator=generator, dtype=like.dtype).to(like) * errors
    shift = run(e, COARSE, needed)[0]
    own = residual(system, x.reshape(1, -1, 1))
    size = x.norm(dim=1).clamp(min=1e-300)
    condition = max(condition, _condition(system, z, shift.reshape(1, -1, 1)))

    def same(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=like.dtype).to(like).expand(samples)

    error = shift.norm(dim=1) / size
    return Solution(
        x[..., None],
        n // samples - opened.clamp(max=n // samples),
        same(condition),
        error / same(relative(errors, system.rhs)).clamp(min=1e-300),
        same(relative(own, system.rhs)),
        error,
        same(iterations).long(),
        ("LSMR",) * samples,
        (CONVERGED if stop < 7 else STALLED,) * samples,
    )


def _condition(system: Equations, strong: Tensor, weak: Tensor) -> float:
    """A lower bound: by power iteration from one vector, and by the stretch of a weak one."""
    for _ in range(POWERS):
        strong = system.adjoint(system.product(strong / strong.norm()))
    stretch = float(system.product(weak).norm() / weak.norm().clamp(min=1e-300))
    return float(strong.norm()) ** 0.5 / stretch if stretch > 0 else 0.0

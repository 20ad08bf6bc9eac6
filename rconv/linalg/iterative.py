"""Equations that are known by their products alone, solved by LSMR (Fong and Saunders, 2011).

No matrix is stored. What a factorisation would show of rank and noise is found by further runs on
random numbers: rows made of a random vector, whose solution from zero lacks what the equations do
not see of it; and rows of nothing but random errors.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from threadpoolctl import threadpool_limits
from torch import Tensor

from rconv.linalg.precondition import preconditioner
from rconv.linalg.refine import NEGLIGIBLE
from rconv.linalg.solution import CONVERGED, POWERS, STALLED, Solution, relative
from rconv.linalg.system import System

ACCURACY = 1e-12
"""Of the first run, relative. A second one on what is left of the rows finds most other digits,
without the rounding of the first."""

CORRECTION = 1e-6
"""Of the second run: what is left of the rows is partly rounding, and no x explains that."""

COARSE = 1e-4
"""Of a last correction, and of runs that estimate a size: that of an error or a weak direction."""

ITERATIONS = 10_000
"""At most, of one run. What has not converged by then is not corrected, and counts as open. A
condition of 9,000 took 4,000, and one of 20,000 less than 3,000."""

SEEN = 1e-5
"""Of a random vector of deviation 1, a direction that is open keeps a normal number: less than
this once in 100,000 times. What a run leaves of directions that are seen is below it where LSMR
has converged to 10 digits in some thousand unknowns."""


def solve_iterative(system: System, samples: int = 1) -> Solution:
    """Weighted least squares, without a matrix.

    The system, N = k = 1, should be weighted by its errors; the unknown is that of B samples, one
    after the other. One solution for each is returned, value (B, n / B, 1); of minimum norm where
    the rank is short. The rank is that of a random vector: a direction that is open is missed once
    in 100,000 times, and where several are, their number is right up to a factor. The condition is
    a lower bound. The error is measured on a random one.
    """
    run = Runs(system)
    x, last, iterations, status = run.refined(system.rhs)
    generator = torch.Generator().manual_seed(0)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like)

    z = random(x)
    told, needed = run(system.apply(z))
    if (_sizes(z - told, samples) > SEEN).any() and needed < ITERATIONS:
        told = told + run(system.apply(z - told), CORRECTION)[0]
    left = _sizes(z - told, samples)
    opened = torch.where(left > SEEN, left.square().ceil(), 0.0).long()
    errors = system.std
    weak = run(random(errors) * (errors if errors.any() else 1.0), COARSE)[0]
    shift = weak * bool(errors.any())
    value, residual = x.reshape(samples, -1, 1), relative(system.residual(x), system.rhs)
    error = torch.maximum(_sizes(shift, samples), _sizes(last, samples)) / _sizes(x, samples)
    # Products round, too.
    n, error = value.shape[1], error.nan_to_num(nan=0.0).clamp(min=NEGLIGIBLE)
    return Solution(
        value,
        n - opened.clamp(max=n),
        torch.full_like(error, _condition(system, run, z, weak)),
        error / relative(errors, system.rhs).clamp(min=1e-300),
        residual.expand(samples),
        error,
        torch.full_like(opened, iterations),
        ("LSMR",) * samples,
        (status,) * samples,
    )


def _sizes(x: Tensor, samples: int) -> Tensor:
    """(B,): norm of each sample's part."""
    return x.reshape(samples, -1).norm(dim=1)


class Runs:
    """LSMR for right-hand sides of one system.

    Parameters
    ----------
    system : System
        The equations.
    """

    def __init__(self, system: System):
        self.system, self.inverse, self._like = system, preconditioner(system), system.rhs
        shape = system.rhs.shape[1], system.count
        products = self._numpy(self._product), self._numpy(self._adjoint)
        self._operator = LinearOperator(shape, *products, dtype=np.float64)

    def __call__(self, rhs: Tensor, accuracy: float = ACCURACY) -> tuple[Tensor, int]:
        """x for rows (1, m, 1), and the iterations it took."""
        y, count = self._lsmr(self._operator, rhs, accuracy)
        return self.inverse(y), count

    def refined(self, rhs: Tensor) -> tuple[Tensor, Tensor, int, str]:
        """x for rows to all digits, its last correction, the iterations it took, and its status."""
        x, total = self(rhs)
        status = CONVERGED if total < ITERATIONS else STALLED
        if status == CONVERGED:
            step, count = self(rhs - self.system.apply(x), CORRECTION)
            x, total = x + step, total + count
        # What a coarse run still finds is as large as the error that is left.
        step, count = self(rhs - self.system.apply(x), COARSE)
        return x + step, step, total + count, status

    def dual(self, x: Tensor, accuracy: float) -> Tensor:
        """The smallest r with Aᵀr = x, (1, m, 1)."""
        return self._lsmr(self._operator.T, self.inverse(x), accuracy)[0]

    def _lsmr(self, operator: LinearOperator, rhs: Tensor, accuracy: float) -> tuple[Tensor, int]:
        # The threads of NumPy's short vectors and of PyTorch's convolutions would wait for each
        # other: on two cores 14 times slower.
        with threadpool_limits(1, "blas"):
            rows = rhs.flatten().cpu().numpy()
            found = lsmr(operator, rows, 0.0, accuracy, accuracy, 0.0, ITERATIONS)
        return torch.from_numpy(found[0]).to(self._like).reshape(1, -1, 1), found[2]

    def _product(self, y: Tensor) -> Tensor:
        return self.system.apply(self.inverse(y))

    def _adjoint(self, rows: Tensor) -> Tensor:
        return self.inverse(self.system.adjoint(rows))

    def _numpy(self, function: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        def applied(v: np.ndarray) -> np.ndarray:
            vector = torch.from_numpy(v).to(self._like).reshape(1, -1, 1)
            return function(vector).flatten().cpu().numpy()

        return applied


def _condition(system: System, run: Runs, strong: Tensor, weak: Tensor) -> float:
    """A lower bound, by the power method on AᵀA and one step of it on the inverse.

    The smallest r with Aᵀr = x is at most ‖x‖ / σ long, for the smallest σ; what random rows make
    x is strong where σ is small, and the bound near.
    """
    for _ in range(POWERS):
        strong = system.adjoint(system.apply(strong / strong.norm()))
    ratio = run.dual(weak, COARSE).norm() / weak.norm().clamp(min=1e-300)
    return float(strong.norm().sqrt() * ratio)

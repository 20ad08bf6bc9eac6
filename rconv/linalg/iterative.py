"""Equations that are known by their products alone, solved by LSMR (Fong and Saunders, 2011).

No matrix is stored. What a factorisation would show of rank and noise is found by further runs on
random numbers: rows made of a random vector, whose solution from zero lacks what the equations do
not see of it; and rows of nothing but random errors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from threadpoolctl import threadpool_limits
from torch import Tensor

from rconv.linalg.operator import Entries, shared
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
    recovered, needed = run(system.apply(z))
    if (_sizes(z - recovered, samples) > SEEN).any() and needed < ITERATIONS:
        recovered = recovered + run(system.apply(z - recovered), CORRECTION)[0]
    left = _sizes(z - recovered, samples)
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
    """LSMR for right-hand sides of one system."""

    def __init__(self, system: System):
        self.system, self.inverse, self._like = system, preconditioner(system), system.rhs
        shape = system.rhs.shape[1], system.count
        product = self._numpy(lambda y: system.apply(self.inverse(y)))
        adjoint = self._numpy(lambda rows: self.inverse(system.adjoint(rows)))
        self._operator = LinearOperator(shape, product, adjoint, dtype=np.float64)

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


SIDE = 3_200
"""Rows or columns of a block that is taken apart, whichever are fewer: above it the eigenvectors
would cost more than they save, and the block is left out."""

PAYS = 30.0
"""A block is used where its largest eigenvalue is more than this many α: below, the iterations that
it saves cost less than its products do."""

WEAK = 1e-8
"""Share of the largest eigenvalue of GᵀG that α is at least: a condition of 1e4 of P loses no digit
that matters, and where there are no weight rows it is all there is of α."""


@dataclass(frozen=True)
class _Block:
    """Rows of one part of a system, taken apart into what they see.

    k columns share the rows: `index` (p, k) are the places of the unknowns. `directions` (p, r) are
    orthonormal, what the rows see; `sizes` (r,) the eigenvalues of GᵀG, ascending.
    """

    index: Tensor
    directions: Tensor
    sizes: Tensor

    @staticmethod
    def of(matrix: Tensor, index: Tensor) -> "_Block | None":
        """From the rows (m, p); None where it would be too large."""
        wide = matrix.shape[0] < matrix.shape[1]
        if min(matrix.shape) > SIDE:
            return None
        sizes, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
        seen = sizes > sizes[-1:] * torch.finfo(sizes.dtype).eps * len(sizes)
        sizes, vectors = sizes[seen], vectors[:, seen]
        return _Block(index, matrix.mT @ (vectors * sizes.rsqrt()) if wide else vectors, sizes)

    def shrunk(self, level: float) -> "_Shrunk":
        """What P⁻¹ changes, for α = level."""
        less = (1 + self.sizes / level).rsqrt() - 1
        if 2 * len(less) < len(self.directions):
            return _Shrunk(self.index, (self.directions * less).mT.contiguous(), self.directions)
        return _Shrunk(self.index, (self.directions * less) @ self.directions.mT)


@dataclass(frozen=True)
class _Shrunk:
    """P⁻¹ less one on one part, whose unknowns have the places `index` (p, k).

    Symmetric, one matrix (p, p), or the product of two, (r, p) first and (p, r) second.
    """

    index: Tensor
    first: Tensor
    second: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(p, k), likewise."""
        return self.first @ x if self.second is None else self.second @ (self.first @ x)


def preconditioner(system: System) -> Callable[[Tensor], Tensor]:
    """P⁻¹, a right preconditioner for the rows of a system, as they are weighted.

    Rows that fall into parts, with one matrix for all channels or one for each, are taken as they
    are; all others count as what their normal matrix is on the average, α times one:

        PᵀP = GᵀG + α.

    On what no row sees, GᵀG is zero and P² is α: a solution of minimum norm stays one of minimum
    norm. The system has N = k = 1. Returns a symmetric map, (1, n, 1) → (1, n, 1); the iterations
    are those of A P⁻¹.
    """
    others = [b for b in system.used if b.operator.couples or isinstance(b.operator, Entries)]
    squares = [(b.operator.row_norms() * b.weight).expand_as(b.rhs).square().sum() for b in others]
    level = float(sum(squares)) / system.unknowns
    blocks = [] if all(b.operator.couples for b in system.used) else _blocks(system)
    level = max(level, WEAK * max((float(block.sizes[-1]) for block in blocks), default=1.0))
    pays = [block.shrunk(level) for block in blocks if block.sizes[-1] > PAYS * level]

    def apply(x: Tensor) -> Tensor:
        whole = system.whole(x, None if system.fixed is None else torch.zeros_like(system.fixed))
        result = whole.flatten().clone()
        for block in pays:
            result[block.index] += block(whole.flatten()[block.index])
        return result[None, system.free, None]

    return apply


def _blocks(system: System) -> list[_Block]:
    """Those of the parts that there are, and that fit.

    Columns whose weights differ, as where entries are missing, have a block each, if that costs no
    more than a large one; else all have that of their mean weights.
    """
    separate = tuple(b for b in system.used if not b.operator.couples)
    found = []
    for part, index in replace(system, blocks=separate).parts():
        count, rows = index.shape[1], sum(b.operator.values.shape[1] for b in part.blocks)
        alike = all(shared(b.weight) for b in part.blocks)
        few = count * min(rows, len(index)) ** 3 <= SIDE**3
        for c in range(count) if few and not alike else (slice(None),):
            matrices = [(b.operator.values * _weight(b.weight, c))[0] for b in part.blocks]
            place = index[:, c].reshape(len(index), -1).to(system.rhs.device)
            found.append(_Block.of(torch.cat(matrices), place))
    return [block for block in found if block is not None and len(block.sizes)]


def _weight(weight: Tensor, column: int | slice) -> Tensor:
    """Weights of the rows of one column, or their mean over all."""
    if shared(weight):
        return weight
    chosen = weight[..., column]
    return chosen[..., None] if isinstance(column, int) else chosen.mean(dim=-1, keepdim=True)

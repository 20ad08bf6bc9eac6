"""A right preconditioner for systems that are known by their products.

Rows that fall into parts, with one matrix for all channels or one for each, are taken as they are;
all others count as what their normal matrix is on the average, α times one:

    PᵀP = GᵀG + α.

On what no row sees, GᵀG is zero and P² is α: with P in between, too, a solution of minimum norm is
of minimum norm.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.linalg.operator import Entries, shared
from rconv.linalg.system import System

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

    Parameters
    ----------
    index : Tensor, int64
        (p, k), places of its unknowns: k columns share the rows.
    directions : Tensor
        (p, r), orthonormal: what the rows see.
    sizes : Tensor
        (r,), the eigenvalues of GᵀG, ascending.
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
    """P⁻¹ less one on one part: symmetric, one matrix or two.

    Parameters
    ----------
    index : Tensor, int64
        (p, k), places of the unknowns.
    first : Tensor
        (p, p), or (r, p).
    second : Tensor or None
        (p, r).
    """

    index: Tensor
    first: Tensor
    second: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(p, k), likewise."""
        return self.first @ x if self.second is None else self.second @ (self.first @ x)


def preconditioner(system: System) -> Callable[[Tensor], Tensor]:
    """P⁻¹ for the rows of a system, as they are weighted.

    The system has N = k = 1. Returns a symmetric map, (1, n, 1) → (1, n, 1); the iterations are
    those of A P⁻¹.
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

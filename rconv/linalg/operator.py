"""Linear maps of an unknown, as every solver sees them: products, adjoint, Gram matrix.

The unknown x of N systems is (N, n, k): k columns share one matrix. Rows keep the natural shape of
the operator, (N, ...), in which right-hand sides, weights and standard deviations broadcast.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


class Operator(Protocol):
    """Rows A x of the unknowns of N systems.

    Unless it `couples`, no row meets several channels of the unknown, and rows fall into
    independent `parts`. Where it has `columns`, the last axis of the rows holds columns that share
    one matrix.
    """

    couples: bool
    columns: bool

    def apply(self, x: Tensor) -> Tensor:
        """A x: (N, n, k) → rows."""

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: rows → (N, n, k)."""

    def add_gram(self, gram: Tensor, weight: Tensor) -> None:
        """Add (w A)ᵀ(w A) to `gram` (N, n, n), in its precision."""

    def row_norms(self) -> Tensor:
        """Norm of each row; broadcasts to the rows."""

    def select(self, where: Tensor | list[int]) -> Self:
        """The operator of some of the N systems."""


@dataclass(frozen=True)
class Part:
    """Rows and unknowns of an operator that meet nothing outside of the part.

    `index` (p, k) is each unknown's place among the n. `make` makes the matrix, (N, m, p), which k
    columns of unknowns share; `take` takes what belongs to the part of values shaped as the rows,
    as (N, m, k) or (N, m, 1).
    """

    index: Tensor
    make: Callable[[], Tensor]
    take: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Matrix:
    """A matrix A (N, m, n), or (1, m, n) for all systems, written out; rows are (N, m, k)."""

    values: Tensor
    couples = True
    columns = True

    def apply(self, x: Tensor) -> Tensor:
        """A x: (N, n, k) → (N, m, k)."""
        return self.values @ x

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (N, m, k) → (N, n, k)."""
        return self.values.mT @ rows

    def add_gram(self, gram: Tensor, weight: Tensor) -> None:
        """Add (w A)ᵀ(w A) to `gram`."""
        rows = weighted(self.values, weight).to(gram.dtype)
        gram += rows.mT @ rows

    def row_norms(self) -> Tensor:
        """(N, m, 1)."""
        return self.values.norm(dim=2, keepdim=True)

    def select(self, where: Tensor | list[int]) -> "Matrix":
        """The matrices of some of the systems."""
        return Matrix(select(self.values, where))


@dataclass(frozen=True)
class Entries:
    """Entries of the unknown, as rows `(N, *shape)`; a weight of 0 marks an unknown one."""

    shape: tuple[int, ...]
    couples = False
    columns = False

    def apply(self, x: Tensor) -> Tensor:
        """x, reshaped: (N, n, 1) → (N, *shape)."""
        return x.reshape(-1, *self.shape)

    def adjoint(self, rows: Tensor) -> Tensor:
        """(N, *shape) → (N, n, 1)."""
        return rows.reshape(len(rows), -1, 1)

    def add_gram(self, gram: Tensor, weight: Tensor) -> None:
        """Add the squares of the weights to the diagonal."""
        squares = weight.to(gram.dtype).square().expand(len(gram), *self.shape)
        gram.diagonal(dim1=1, dim2=2).add_(squares.reshape(len(gram), -1))

    def row_norms(self) -> Tensor:
        """One."""
        return torch.ones((), dtype=torch.float64)

    def select(self, where: Tensor | list[int]) -> "Entries":
        """The same."""
        return self


def weighted(values: Tensor, weight: Tensor) -> Tensor:
    """The values times the weights, without a copy where these are all one number, 1."""
    return values if weight.numel() == 1 and float(weight) == 1.0 else values * weight


def select(values: Tensor, where: Tensor | list[int]) -> Tensor:
    """Entries of the leading axis, unless all systems share them."""
    return values if values.dim() == 0 or len(values) == 1 else values[where]


def shared(weight: Tensor) -> bool:
    """Whether all columns have the same values, such as weights."""
    return weight.dim() == 0 or weight.shape[-1] == 1

"""Linear equations as every solver sees them: rows, right-hand sides, and the error of each."""

from dataclasses import dataclass
from typing import Protocol

import torch
from scipy import sparse
from torch import Tensor

UNKNOWN = torch.zeros((), dtype=torch.float64)
"""A deviation of which nothing is known."""

TRUST = 1e3
"""Most that one row is weighted against another. The normal equations square it, and their
condition limit of 1e7 leaves room for no more than this beside the equations' own."""

FREE = (-torch.inf, torch.inf)


class Declined(ValueError):
    """A solver does not take these equations, with the reason; raised before it starts."""


class Equations(Protocol):
    """A x = b + e for N systems that share nothing: x is (N, n, k), b and e are (N, m, k).

    The k columns share A. A joint system of several samples is one system, N = 1, whose unknown
    holds all of them.

    Parameters
    ----------
    rhs : Tensor
        b, (N, m, k), float64.
    deviation : Tensor
        Standard deviation of e, broadcasts to `rhs`; zeros where nothing is known of it.
    bounds : tuple of float
        What x is known to lie between.
    """

    rhs: Tensor
    deviation: Tensor
    bounds: tuple[float, float]

    @property
    def unknowns(self) -> int:
        """n."""

    def product(self, x: Tensor) -> Tensor:
        """A x: (N, n, k) → (N, m, k)."""

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (N, m, k) → (N, n, k)."""

    def normal_matrix(self) -> Tensor:
        """AᵀA, (N, n, n)."""


@dataclass(frozen=True)
class DenseRows:
    """Equations written out, see `Equations`.

    Parameters
    ----------
    matrix : Tensor
        A, (N, m, n), float64.
    rhs : Tensor
        b, (N, m, k), float64.
    deviation : Tensor
        Standard deviation of b's errors, broadcasts to `rhs`; by default nothing is known.
    bounds : tuple of float
        Of x.
    """

    matrix: Tensor
    rhs: Tensor
    deviation: Tensor = UNKNOWN
    bounds: tuple[float, float] = FREE

    @property
    def unknowns(self) -> int:
        """n."""
        return self.matrix.shape[-1]

    def select(self, where: Tensor | list[int]) -> "DenseRows":
        """Some of the systems."""
        deviation = self.deviation.expand_as(self.rhs)[where]
        return DenseRows(self.matrix[where], self.rhs[where], deviation, self.bounds)

    def whitened(self) -> "DenseRows":
        """Rows divided by their own error, that of the surest as 1, as far as `TRUST` allows.

        The columns share A, so that a row's error is the root mean square over them.
        """
        spread = self.deviation.expand_as(self.rhs).square().mean(dim=2, keepdim=True).sqrt()
        return self.weighed(worth(spread, spread.amin(dim=1, keepdim=True)))

    def weighed(self, weight: Tensor) -> "DenseRows":
        """Rows multiplied by their weights, (N, m, 1)."""
        rhs, deviation = self.rhs * weight, self.deviation * weight
        return DenseRows(self.matrix * weight, rhs, deviation, self.bounds)

    def product(self, x: Tensor) -> Tensor:
        """A x: (N, n, k) → (N, m, k)."""
        return self.matrix @ x

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (N, m, k) → (N, n, k)."""
        return self.matrix.mT @ rows

    def normal_matrix(self) -> Tensor:
        """AᵀA, (N, n, n)."""
        return self.matrix.mT @ self.matrix


@dataclass(frozen=True)
class SparseRows:
    """Equations that share a sparse matrix, see `Equations`.

    Parameters
    ----------
    matrix : scipy.sparse.csr_matrix
        A, (m, n), that of all N systems.
    rhs : Tensor
        b, (N, m, 1).
    deviation : Tensor
        Of b's errors, broadcasts to `rhs`.
    bounds : tuple of float
        Of x.
    """

    matrix: sparse.csr_matrix
    rhs: Tensor
    deviation: Tensor
    bounds: tuple[float, float] = FREE

    @property
    def unknowns(self) -> int:
        """n."""
        return self.matrix.shape[1]

    def product(self, x: Tensor) -> Tensor:
        """A x: (N, n, 1) → (N, m, 1)."""
        return _applied(self.matrix, x)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (N, m, 1) → (N, n, 1)."""
        return _applied(self.matrix.T, rows)

    def normal_matrix(self) -> Tensor:
        """AᵀA, (N, n, n), dense."""
        gram = torch.from_numpy((self.matrix.T @ self.matrix).toarray())
        return gram.to(self.rhs).expand(len(self.rhs), -1, -1)


def _applied(matrix: sparse.spmatrix, x: Tensor) -> Tensor:
    return torch.from_numpy((matrix @ x[..., 0].cpu().numpy().T).T)[..., None].to(x)


def worth(error: Tensor, least: float | Tensor) -> Tensor:
    """What rows with these errors count: those of the least error 1, no other below 1 / `TRUST`.

    Parameters
    ----------
    error : Tensor
        Of each row, any shape.
    least : float or Tensor
        That of the best one, broadcasts to `error`; 0 where it is unknown.

    Returns
    -------
    Tensor
        Shaped as `error`; 1 where `least` is 0.
    """
    least = torch.as_tensor(least, dtype=error.dtype, device=error.device)
    own = torch.where(least > 0, least / error.clamp(min=1e-300), 1.0)
    return own.clamp(min=1 / TRUST, max=1.0)


def residual(equations: Equations, x: Tensor) -> Tensor:
    """b - A x, (N, m, k)."""
    return equations.rhs - equations.product(x)

"""Systems that share their rows, and besides know some of their unknowns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.linalg.equations import FREE, DenseRows


@dataclass(frozen=True)
class SharedRows:
    """N systems that share the rows A, and each know some of their unknowns; see `Equations`.

    Parameters
    ----------
    matrix : Tensor
        A, (m, n), float64, that of all systems.
    diagonal : Tensor
        w, (N, n): further rows diag(w) x, 0 for an unknown that is not known.
    rhs : Tensor
        (N, m + n, 1), of A first.
    deviation : Tensor
        Of its errors, broadcasts to `rhs`.
    bounds : tuple of float
        Of x.
    """

    matrix: Tensor
    diagonal: Tensor
    rhs: Tensor
    deviation: Tensor
    bounds: tuple[float, float] = FREE

    @property
    def unknowns(self) -> int:
        """n."""
        return self.matrix.shape[-1]

    def select(self, where: Tensor | list[int]) -> DenseRows:
        """Some of the systems, written out."""
        own = torch.diag_embed(self.diagonal[where])
        matrix = torch.cat([self.matrix.expand(len(own), -1, -1), own], dim=1)
        deviation = self.deviation.expand_as(self.rhs)[where]
        return DenseRows(matrix, self.rhs[where], deviation, self.bounds)

    def product(self, x: Tensor) -> Tensor:
        """A x and w x: (N, n, 1) → (N, m + n, 1)."""
        return torch.cat([self.matrix @ x, self.diagonal[..., None] * x], dim=1)

    def adjoint(self, rows: Tensor) -> Tensor:
        """(N, m + n, 1) → (N, n, 1)."""
        own, known = rows.split([len(self.matrix), self.unknowns], dim=1)
        return self.matrix.mT @ own + self.diagonal[..., None] * known

    def normal_matrix(self) -> Tensor:
        """AᵀA + diag(w²), (N, n, n)."""
        return self.matrix.mT @ self.matrix + torch.diag_embed(self.diagonal**2)

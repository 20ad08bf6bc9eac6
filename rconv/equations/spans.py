"""Span constraints: a convolution's input from its own weight gradient, nothing above it known.

∂ℓ/∂W, as G (D, C·kh·kw), is Ō (D, L) times the patches of X (L, C·kh·kw). Where Ō has rank L, the
rows of G span the patches: each lies in a known space. Windows overlap and the padding is zero,
which leaves X no freedom but a factor, as a rule.

What lies above may tie positions together for good: BatchNorm that normalises by the image makes
Ō sum to zero over them, pooling may pass some over. Then Ō = (Ō Q) Qᵀ with orthonormal Q (L, m),
the `subspace`, and the same holds for m combinations of patches: Qᵀ · patches lies in the space.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rconv.equations.windows import window_index
from rconv.linalg.solution import rank_floor
from rconv.model.geometry import Geometry

MEET = 1e-12
"""Share of its square that a map may lose in the space of its patches and count as within it: a
rounding error of 1e-6, which is what an eigenvalue at 1 of a matrix of thousands of rows has."""

TIED = 1e-6
"""Share of the positions' own sum below which combinations are known to sum to zero."""

APART = 100.0
"""A map differs from the best one where its patches lose this many times as much of their square:
ten times the residual, so that the error of one is no more than a tenth of the other."""

SHIFT = 1e-9
"""Eigenvalues are looked for from 1 + SHIFT downwards: far above the rounding of a factorisation,
far below any distance from 1 that matters."""

STEPS = 4
"""Each divides a direction of eigenvalue 1 - d by 1 + d / SHIFT. At d = 1e-6, four by 1e12."""


@dataclass(frozen=True)
class Spans:
    """How the patches of a convolution's input overlap.

    Parameters
    ----------
    geometry : Geometry
        The convolution's shapes.
    subspace : Tensor
        Q, (L, m), orthonormal columns: the combinations of positions that Ō can be made of.
    """

    geometry: Geometry
    subspace: Tensor

    @property
    def combinations(self) -> int:
        """m, the rank that Ō needs."""
        return self.subspace.shape[1]

    @property
    def row_length(self) -> int:
        """Entries of a patch, C·kh·kw."""
        return self.geometry.input[0] * self.geometry.offsets

    @cached_property
    def sums(self) -> Tensor:
        """Qᵀ 1, (m,): how combinations add up over the positions; zero where all sum to zero."""
        sums = self.subspace.sum(dim=0)
        tied = sums.norm() < TIED * self.geometry.positions**0.5
        return torch.zeros_like(sums) if tied else sums

    @cached_property
    def places(self) -> Tensor:
        """(m, H·W, kh·kw): weight of pixel q at kernel offset t in combination j of patches."""
        nowhere = self.subspace.new_zeros(1, self.combinations)
        window = window_index(self.geometry).to(self.subspace.device)
        return torch.cat([self.subspace, nowhere])[window].permute(2, 1, 0)

    @cached_property
    def _inverse(self) -> tuple[Tensor, int]:
        """Pseudoinverse (H·W, H·W) of patches' squared sizes in terms of a channel's pixels.

        And how many directions of these no combination sees.
        """
        gram = torch.einsum("jqt,jrt->qr", self.places, self.places)
        values, vectors = torch.linalg.eigh(gram)
        seen = values > values[-1] * rank_floor(0.0).to(values)
        vectors = vectors[:, seen]
        return vectors / values[seen] @ vectors.mT, int((~seen).sum())

    @cached_property
    def _overlap(self) -> Tensor:
        """(m·m, kh·kw·kh·kw): how offset t of combination j fixes offset s of combination k."""
        spread = torch.einsum("jqt,qr,krs->jkts", self.places, self._inverse[0], self.places)
        return spread.reshape(self.combinations**2, -1)

    def patches(self, x: Tensor) -> Tensor:
        """Qᵀ · patches of a map: (C, H, W) → (m, C, kh·kw)."""
        return torch.einsum("jqt,cq->jct", self.places, x.flatten(1))

    def nearest(self, patches: Tensor) -> Tensor:
        """The map whose patches are nearest: (m, C, kh·kw) → (C, H, W)."""
        sums = torch.einsum("jqt,jct->cq", self.places, patches)
        return (sums @ self._inverse[0]).reshape(self.geometry.input)

    def within(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Maps whose patches lie in a space, best first.

        Written in the space's own coordinates, m for each of m combinations, "make a map of the
        patches, and patches of the map" has the eigenvalue 1 where nothing is lost. That is a
        matrix of m² rows, however many channels there are. The space has the orthonormal rows
        `basis` (m, C, kh·kw).

        Returns
        -------
        maps : Tensor
            (C, H, W) whose patches lie in the space best, of any factor.
        losses : Tensor
            Ascending, at most 32: share of their square that orthogonal maps lose; the first is
            that of the map.
        """
        m = self.combinations
        taps = torch.einsum("act,bcs->tsab", basis, basis).reshape(-1, m * m)
        fixed = (self._overlap @ taps).reshape(m, m, m, m).transpose(1, 2).reshape(m * m, -1)
        losses, vectors = fixed_space((fixed + fixed.mT) / 2)
        coordinates = vectors[:, 0].reshape(m, m)
        return self.nearest(torch.einsum("ja,act->jct", coordinates, basis)), losses

    def dimension(self, losses: Tensor) -> int:
        """Of the family of maps that fit, by what orthogonal maps lose; 1 if all but a factor."""
        floor = max(MEET, APART * float(losses[0]))
        return int((losses <= floor).sum()) + self.geometry.input[0] * self._inverse[1]

    def generic_dimension(self) -> int | None:
        """Dimension of the family for a random map; None where its patches are not independent."""
        if self.combinations == 0 or not self._inverse[0].any():
            return None
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.geometry.input, generator=generator, dtype=torch.float64)
        space, rank = row_space(self.patches(x.to(self.subspace)), self.combinations)
        return self.dimension(self.within(space)[1]) if rank == self.combinations else None


def row_space(rows: Tensor, dimension: int) -> tuple[Tensor, int]:
    """Orthonormal basis (dimension, C, kh·kw) of rows (n, C, kh·kw), and their numerical rank."""
    _, sizes, basis = torch.linalg.svd(rows.flatten(1), full_matrices=False)
    rank = int((sizes > sizes[:1] * rank_floor(0.0).to(sizes)).sum())
    return basis[:dimension].reshape(-1, *rows.shape[1:]), rank


def fixed_space(matrix: Tensor, most: int = 32) -> tuple[Tensor, Tensor]:
    """Eigenvalues next to 1 of a symmetric matrix (n, n) that has none above, and eigenvectors.

    By inverse iteration on a block of at most `most` vectors: one Cholesky factorisation, some
    twenty times faster than all eigenvectors of a matrix of thousands of rows. Returns 1 -
    eigenvalue, ascending, and the orthonormal vectors as columns.
    """
    n = len(matrix)
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    factor = torch.linalg.cholesky((1 + SHIFT) * identity - matrix)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(n, min(n, most), generator=generator, dtype=matrix.dtype)
    block = torch.linalg.qr(block.to(matrix.device))[0]
    for _ in range(STEPS):
        block = torch.linalg.qr(torch.cholesky_solve(block, factor))[0]
    # 1 - eigenvalue itself, whose rounding is that of the small difference.
    losses, turn = torch.linalg.eigh(block.mT @ (block - matrix @ block))
    return losses, block @ turn

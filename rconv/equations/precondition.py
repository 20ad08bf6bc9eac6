"""A right preconditioner for gradient and weight constraints that are known by their products.

Gradient rows are one matrix for all channels, in a block for each residue class. They are taken
as they are; the weight rows count as what their normal matrix is on the average, α times one:

    PᵀP = GᵀG + α.

On what no row sees, GᵀG is zero and P² is α: with P in between, too, a solution of minimum norm is
of minimum norm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
class Block:
    """Gradient rows of one residue class, for all channels alike.

    Parameters
    ----------
    pixels : Tensor
        (n,), of one sample, those of the class.
    directions : Tensor
        (B·n, r), orthonormal, sample by sample: what the rows see.
    sizes : Tensor
        (r,), the eigenvalues of GᵀG.
    """

    pixels: Tensor
    directions: Tensor
    sizes: Tensor

    @staticmethod
    def of(matrix: Tensor, pixels: Tensor) -> "Block | None":
        """From the rows (m, B·n); None where it would be too large."""
        wide = matrix.shape[0] < matrix.shape[1]
        if min(matrix.shape) > SIDE:
            return None
        sizes, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
        seen = sizes > sizes[-1:] * torch.finfo(sizes.dtype).eps * len(sizes)
        sizes, vectors = sizes[seen], vectors[:, seen]
        return Block(pixels, matrix.mT @ (vectors * sizes.rsqrt()) if wide else vectors, sizes)

    def shrunk(self, level: float) -> "Shrunk":
        """What P⁻¹ changes, for α = level."""
        less = (1 + self.sizes / level).rsqrt() - 1
        if 2 * len(less) < len(self.directions):
            return Shrunk(self.pixels, self.directions, (self.directions * less).mT.contiguous())
        return Shrunk(self.pixels, (self.directions * less) @ self.directions.mT)


@dataclass(frozen=True)
class Shrunk:
    """P⁻¹ less one, up to a factor, on one residue class: symmetric, one matrix or two.

    Parameters
    ----------
    pixels : Tensor
        (n,), of one sample.
    first : Tensor
        (B·n, B·n), or (B·n, r).
    second : Tensor or None
        (r, B·n).
    """

    pixels: Tensor
    first: Tensor
    second: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(C, B·n), likewise."""
        return x @ self.first if self.second is None else x @ self.first @ self.second


@dataclass(frozen=True)
class Preconditioner:
    """P⁻¹, symmetric.

    Parameters
    ----------
    blocks : tuple of Shrunk
        Of the residue classes.
    shape : tuple of int
        (B, C, H·W) of the unknown.
    """

    blocks: tuple["Shrunk", ...]
    shape: tuple[int, int, int]

    @staticmethod
    def of(
        blocks: list[Block | None], shape: tuple[int, int, int], level: float
    ) -> "Preconditioner":
        """With the blocks that there are, and α no smaller than they allow."""
        own = [block for block in blocks if block is not None and len(block.sizes)]
        level = max(level, WEAK * max((float(block.sizes[-1]) for block in own), default=1.0))
        pays = tuple(block.shrunk(level) for block in own if block.sizes[-1] > PAYS * level)
        return Preconditioner(pays, shape)

    def __call__(self, x: Tensor) -> Tensor:
        """P⁻¹ x, up to a factor: (1, B·C·H·W, 1), likewise."""
        maps = x.reshape(self.shape)
        result = maps.clone()
        for block in self.blocks:
            own = maps[:, :, block.pixels].transpose(0, 1)
            change = block(own.reshape(len(own), -1)).reshape(own.shape)
            result[:, :, block.pixels] += change.transpose(0, 1)
        return result.reshape(1, -1, 1)

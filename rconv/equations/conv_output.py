"""Weight constraints: linear in a convolution's input, made of the model alone.

The unknown is the input X, (C, H, W), flattened in this order. Where the output O is known
(R-CONV, "weight constraints"),

    M · vec(X) = vec(O - b),          M (D·L, C·H·W) made of W.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from torch import Tensor

from rconv.equations.windows import window_index, window_slices
from rconv.linalg.dense import MAX_UNKNOWNS
from rconv.linalg.sparse import SparseFactor
from rconv.model.geometry import Geometry, Stage

MAX_FILL = 150_000
"""C²·H·W up to which a large layer's weight constraints may be factored: 16 filters over an image
of side 128 took 21 s and 1.1 GB, over one of side 64 2.6 s and 0.2 GB."""


def weight_matrix(weight: Tensor, geometry: Geometry) -> sparse.csr_matrix:
    """Weight constraints' matrix M, sparse float64 (D·L, C·H·W), and the same for every image.

    Entry [(d, p), (c, q)] is W[d, c, t], of W (D, C, kh, kw), where the window of position p has
    pixel q at offset t.
    """
    d, c = weight.shape[:2]
    window = window_index(geometry).numpy()
    t, q = np.nonzero(window < geometry.positions)
    p = window[t, q]
    filters, channels = np.arange(d)[:, None, None], np.arange(c)[None, :, None]
    rows = np.broadcast_to(filters * geometry.positions + p, (d, c, t.size))
    columns = np.broadcast_to(channels * geometry.pixels + q, (d, c, t.size))
    values = weight.detach().cpu().double().numpy().reshape(d, c, -1)[:, :, t]
    shape = (geometry.weight_rows, geometry.unknowns)
    return sparse.csr_matrix((values.ravel(), (rows.ravel(), columns.ravel())), shape=shape)


def add_weight_gram(gram: Tensor, weight: Tensor, row_weight: Tensor, geometry: Geometry) -> None:
    """Add the Gram matrix of the weighted weight constraints, Mᵀ diag(row_weight²) M.

    Sums over output positions the small product of each window with itself, so that the cost is
    that of the windows and not of the matrix. `gram` (C·H·W, C·H·W) is dense, W (D, C, kh, kw) in
    its precision, and the weight of each equation (D, L).
    """
    (d, c), (h, w) = weight.shape[:2], geometry.input[1:]
    kernel = weight.reshape(1, d, -1) * row_weight.T[:, :, None]
    products = (kernel.mT @ kernel).reshape(*geometry.output[1:], *[c, *geometry.kernel] * 2)
    blocks = gram.unflatten(1, (c, h, w)).unflatten(0, (c, h, w))
    for i, (t, y) in enumerate(window_slices(geometry, 0)):
        for j, (u, x) in enumerate(window_slices(geometry, 1)):
            blocks[:, y, x, :, y, x] += products[i, j, :, t, u, :, t, u]


@dataclass(frozen=True)
class ConvOutput:
    """A convolution of its input, without the bias; every sample has an output of its own.

    See `rconv.linalg.operator.Operator`. The unknown is vec(X), X (B, C, H, W), of B samples. Rows
    are (N, B, D, Ho, Wo).

    Parameters
    ----------
    stage : Stage
        The convolution.
    samples : int
        B.
    """

    stage: Stage
    samples: int = 1
    couples = True
    columns = False

    def apply(self, x: Tensor) -> Tensor:
        """(N, B·C·H·W, 1) → (N, B, D, Ho, Wo)."""
        maps = self.stage.convolve(x.reshape(-1, *self.stage.geometry.input))
        return maps.reshape(-1, self.samples, *maps.shape[1:])

    def adjoint(self, rows: Tensor) -> Tensor:
        """(N, B, D, Ho, Wo) → (N, B·C·H·W, 1)."""
        return self.stage.transpose(rows.flatten(0, 1)).reshape(len(rows), -1, 1)

    def variance(self, x: Tensor) -> Tensor:
        """Variance of the rows where the input's errors are independent with the variances x."""
        maps = self.stage.variance(x.reshape(-1, *self.stage.geometry.input))
        return maps.reshape(-1, self.samples, *maps.shape[1:])

    def add_gram(self, gram: Tensor, weight: Tensor) -> None:
        """Add to `gram`: a block for each sample."""
        g, b = self.stage.geometry, self.samples
        blocks = gram.view(-1, b, g.unknowns, b, g.unknowns)
        weight = weight.to(gram.dtype).expand(len(gram), b, *g.output).flatten(3)
        for n in range(len(gram)):
            for i in range(b):
                part = blocks[n, i, :, i]
                add_weight_gram(part, self.stage.weight.to(gram.dtype), weight[n, i], g)

    def row_norms(self) -> Tensor:
        """(D, Ho, Wo)."""
        return self.stage.row_norms()

    def select(self, where: Tensor | list[int]) -> "ConvOutput":
        """The same: the model's."""
        return self

    @cached_property
    def factor(self) -> SparseFactor | None:
        """All rows of one sample, factored; None if they fall short, or the factors do not fit."""
        g = self.stage.geometry
        fits = g.unknowns <= MAX_UNKNOWNS or g.input[0] * g.unknowns <= MAX_FILL
        if not (self.enough and fits):
            return None
        factor = SparseFactor(weight_matrix(self.stage.weight, g))
        return factor if factor.regular else None

    @property
    def enough(self) -> bool:
        """Whether there are as many rows as unknowns, all of them known."""
        g = self.stage.geometry
        return self.stage.activation.invertible and g.weight_rows >= g.unknowns

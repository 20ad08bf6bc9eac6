"""Gradient and weight constraints of one convolution, stacked for one image.

Both kinds share the unknown, so that what one kind leaves open the other may close, and noise
that one amplifies the other holds down.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.equations.weighing import TwoKinds
from rconv.equations.weight import weight_gram
from rconv.linalg.equations import FREE, UNKNOWN
from rconv.model.geometry import Stage


@dataclass(frozen=True)
class StackedSystem(TwoKinds):
    """The stacked, weighted equations of one image; see `rconv.linalg.equations.Equations`.

    The unknown is vec(X), (1, C·H·W, 1). The rows are those of the gradients, channel by channel
    of each, then those of the weights.

    Parameters
    ----------
    stage : Stage
        The convolution.
    matrix : Tensor
        A, (D·kh·kw, H·W), or (0, H·W) where only weight constraints are used.
    gradient : Tensor
        (D·kh·kw, C), right-hand sides of A.
    output : Tensor
        O - b where it is known, (D, Ho, Wo).
    row_weight : Tensor
        (D, Ho, Wo), weight of each weight row, 0 where the output is unknown.
    gradient_error : Tensor
        Standard deviation of the errors of `gradient`, broadcasts to (D·kh·kw, 1).
    output_error : Tensor
        That of `output` times `row_weight`, broadcasts to (D, Ho, Wo).
    bounds : tuple of float
        Of X.
    """

    stage: Stage
    matrix: Tensor
    gradient: Tensor
    output: Tensor
    row_weight: Tensor
    gradient_error: Tensor = UNKNOWN
    output_error: Tensor = UNKNOWN
    bounds: tuple[float, float] = FREE

    @property
    def unknowns(self) -> int:
        """n = C·H·W."""
        return self.stage.geometry.unknowns

    @property
    def rhs(self) -> Tensor:
        """b, (1, m, 1)."""
        return self._rows(self.gradient, self.row_weight * self.output)

    def product(self, x: Tensor) -> Tensor:
        """A x of all rows: (1, n, 1) → (1, m, 1)."""
        image = x.reshape(1, *self.stage.geometry.input)
        own = self.matrix @ image[0].flatten(1).T
        return self._rows(own, self.row_weight * self.stage.convolve(image)[0])

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (1, m, 1) → (1, n, 1)."""
        gradient, weight = rows.flatten().split([self.gradient.numel(), self.output.numel()])
        weight = weight.reshape(self.output.shape)
        back = self.stage.transpose((self.row_weight * weight)[None])[0].flatten(1)
        own = self.matrix.T @ gradient.reshape(self.gradient.shape)
        return (back + own.T).reshape(1, -1, 1)

    def normal_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """AᵀA of all rows, (1, n, n), in this precision."""
        g = self.stage.geometry
        gram = weight_gram(self.stage.weight.to(dtype), self.row_weight.flatten(1).to(dtype), g)
        if len(self.matrix):
            blocks = gram.view(g.input[0], g.pixels, g.input[0], g.pixels)
            matrix = self.matrix.to(dtype)
            own = matrix.T @ matrix
            for c in range(g.input[0]):
                blocks[c, :, c] += own
        return gram[None]

    @property
    def has_gradients(self) -> bool:
        """Whether there are gradient constraints."""
        return len(self.matrix) > 0

    def weighted(self, gradient: float | Tensor, weight: float | Tensor) -> "StackedSystem":
        """Both blocks multiplied: by a factor, or row by row."""
        return replace(
            self,
            matrix=self.matrix * gradient,
            gradient=self.gradient * gradient,
            row_weight=self.row_weight * weight,
            gradient_error=self.gradient_error * gradient,
            output_error=self.output_error * weight,
        )

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Norms of the rows of both kinds, as they are weighed."""
        return self.matrix.norm(dim=1), self.stage.row_norms() * self.row_weight

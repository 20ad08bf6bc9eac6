"""Gradient and weight constraints of one convolution, stacked for one image.

Both kinds share the unknown, so that what one kind leaves open the other may close, and noise
that one amplifies the other holds down. Stacking them is R-GAP's idea (Zhu and Blaschko, ICLR
2021, arXiv 2010.07733); weights that follow from each row's own noise are this project's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.equations.weight import weight_gram
from rconv.linalg.equations import FREE, UNKNOWN, worth
from rconv.model.geometry import Stage


@dataclass(frozen=True)
class StackedSystem:
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

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of b's errors, (1, m, 1); 0 for rows that are not used."""
        weight = self.output_error * (self.row_weight > 0)
        return self._rows(self.gradient_error.expand_as(self.gradient), weight)

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

    def normal_matrix(self) -> Tensor:
        """AᵀA of all rows, (1, n, n)."""
        g = self.stage.geometry
        gram = weight_gram(self.stage.weight, self.row_weight.flatten(1), g)
        if len(self.matrix):
            blocks = gram.view(g.input[0], g.pixels, g.input[0], g.pixels)
            own = self.matrix.T @ self.matrix
            for c in range(g.input[0]):
                blocks[c, :, c] += own
        return gram[None]

    @property
    def used(self) -> bool:
        """Whether it has any row at all."""
        return len(self.matrix) > 0 or bool(self.row_weight.any())

    def scaled(self) -> "StackedSystem":
        """Both blocks divided by their mean row norm, so that neither drowns the other."""
        a, m = (1 / size for size in self._row_norms())
        return self.weighted(a, m)

    def whitened(self) -> "StackedSystem":
        """Rows divided by their own error, as far as `TRUST` allows; a mean row norm of about one.

        Where the error of some rows is unknown, both blocks are divided by their size.
        """
        return self.weighed_against(self.least_error())

    def least_error(self) -> float:
        """The smallest error of a row that is used, in the unit of its block's mean row norm."""
        sizes = self._row_norms()
        used = len(self.matrix) > 0, bool(self.row_weight.any())
        blocks = zip((self.gradient_error, self.output_error), sizes, used, strict=True)
        return min((float(error.min()) / size for error, size, own in blocks if own), default=0.0)

    def weighed_against(self, least: float) -> "StackedSystem":
        """Rows divided by their error in units of `least`; both blocks by their size if it is 0."""
        if least <= 0:
            return self.scaled()
        sizes = self._row_norms()
        errors = self.gradient_error / sizes[0], self.output_error / sizes[1]
        factors = (worth(e, least) / size for e, size in zip(errors, sizes, strict=True))
        return self.weighted(*factors)

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

    def _rows(self, gradient: Tensor, weight: Tensor) -> Tensor:
        return torch.cat([gradient.flatten(), weight.flatten()])[None, :, None]

    def _row_norms(self) -> tuple[float, float]:
        """Mean norm of the gradient rows and of the weight rows that are used; 1 for none."""
        a = float(self.matrix.norm(dim=1).mean()) if len(self.matrix) else 0.0
        norms = self.stage.row_norms() * self.row_weight
        used = self.row_weight > 0
        m = float(norms[used].mean()) if used.any() else 0.0
        return a or 1.0, m or 1.0

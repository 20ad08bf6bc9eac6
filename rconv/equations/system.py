"""Gradient and weight constraints of one convolution, stacked for one image.

Both kinds share the unknown, so that what one kind leaves open the other may close, and noise
that one amplifies the other holds down. Stacking them is R-GAP's idea (Zhu and Blaschko, ICLR
2021, arXiv 2010.07733); weights that follow from each row's own noise are this project's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.equations.weight import weight_gram
from rconv.model.geometry import Stage

TRUST = 1e3
"""Most that one kind of rows is weighted against the other. The normal equations square it, and
their condition limit of 1e7 leaves room for no more than this beside the equations' own."""


@dataclass(frozen=True)
class StackedSystem:
    """The stacked, weighted equations of one image.

    Parameters
    ----------
    stage : Stage
        The convolution.
    matrix : Tensor
        A, (D·kh·kw, H·W), or (0, H·W) where only weight constraints are used.
    rhs : Tensor
        (D·kh·kw, C), right-hand sides of A.
    output : Tensor
        O - b where it is known, (D, Ho, Wo).
    row_weight : Tensor
        (D, Ho, Wo), weight of each weight row, 0 where the output is unknown.
    """

    stage: Stage
    matrix: Tensor
    rhs: Tensor
    output: Tensor
    row_weight: Tensor

    def scaled(self) -> "StackedSystem":
        """Both blocks divided by their mean row norm, so that neither drowns the other."""
        a, m = (1 / size for size in self._row_norms())
        return self.weighted(a, m)

    def whitened(self, gradient_error: float, output_error: float) -> tuple["StackedSystem", float]:
        """Rows divided by their own error, as far as `TRUST` allows, and the error that is left.

        Parameters
        ----------
        gradient_error : float
            Standard deviation of the error of a gradient row.
        output_error : float
            Standard deviation of the error of a weight row (output times `row_weight`).

        Returns
        -------
        StackedSystem
            Scaled to a mean row norm of about one.
        float
            Standard deviation of its rows' errors.
        """
        a, m = self._row_norms()
        gradient_error, output_error = gradient_error / a, output_error / m
        if not len(self.matrix) or gradient_error == 0 or output_error == 0:
            return self.weighted(1 / a, 1 / m), max(gradient_error, output_error)
        ratio = min(max(output_error / gradient_error, 1 / TRUST), TRUST)
        error = max(gradient_error, output_error / ratio)
        return self.weighted(1 / a, 1 / m / ratio), error

    def weighted(self, gradient: float, weight: float) -> "StackedSystem":
        """Both blocks multiplied by a factor each."""
        return replace(
            self,
            matrix=self.matrix * gradient,
            rhs=self.rhs * gradient,
            row_weight=self.row_weight * weight,
        )

    def normal_matrix(self) -> Tensor:
        """(C·H·W, C·H·W) normal matrix of all rows."""
        g = self.stage.geometry
        gram = weight_gram(self.stage.weight, self.row_weight.flatten(1), g)
        if len(self.matrix):
            blocks = gram.view(g.input[0], g.pixels, g.input[0], g.pixels)
            own = self.matrix.T @ self.matrix
            for c in range(g.input[0]):
                blocks[c, :, c] += own
        return gram

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted residuals of the gradient rows and of the weight rows at x (C·H·W, 1)."""
        image = x.reshape(1, *self.stage.geometry.input)
        gradient = self.rhs - self.matrix @ image[0].flatten(1).T
        weight = self.row_weight * (self.output - self.stage.convolve(image)[0])
        return gradient, weight

    def adjoint(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Transpose of the stacked rows, applied to residuals: (C·H·W, 1)."""
        back = self.stage.transpose((self.row_weight * weight)[None])[0].flatten(1)
        return (back + (self.matrix.T @ gradient).T).reshape(-1, 1)

    def size(self) -> float:
        """Root mean square of the right-hand sides, of the rows that say something."""
        rows = torch.cat([self.rhs.flatten(), (self.row_weight * self.output).flatten()])
        used = rows[rows != 0]
        return float(used.square().mean().sqrt()) if len(used) else 0.0

    def _row_norms(self) -> tuple[float, float]:
        """Mean norm of the gradient rows and of the weight rows that are used; 1 for none."""
        a = float(self.matrix.norm(dim=1).mean()) if len(self.matrix) else 0.0
        norms = self.stage.row_norms() * self.row_weight
        used = self.row_weight > 0
        m = float(norms[used].mean()) if used.any() else 0.0
        return a or 1.0, m or 1.0

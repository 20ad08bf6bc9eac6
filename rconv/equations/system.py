"""Gradient and weight constraints of one convolution, stacked for one image.

Both kinds share the unknown, so that what one kind leaves open the other may close, and noise
that one amplifies the other holds down. Stacking them is R-GAP's idea; see `rconv.attack.layer`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.equations.weight import weight_gram
from rconv.model.geometry import Stage


@dataclass(frozen=True)
class StackedSystem:
    """The stacked, weighted equations of one image.

    Attributes
    ----------
    stage : the convolution.
    matrix : A, (D·kh·kw, H·W), or (0, H·W) where only weight constraints are used.
    rhs : (D·kh·kw, C), right-hand sides of A.
    output : O - b where it is known, (D, Ho, Wo).
    row_weight : (D, Ho, Wo), weight of each weight row, 0 where the output is unknown.
    """

    stage: Stage
    matrix: Tensor
    rhs: Tensor
    output: Tensor
    row_weight: Tensor

    def scaled(self) -> "StackedSystem":
        """Both blocks divided by their mean row norm, so that neither drowns the other."""
        a = _inverse(self.matrix.norm(dim=1).mean()) if len(self.matrix) else 1.0
        norms = self.stage.row_norms() * self.row_weight
        used = self.row_weight > 0
        m = _inverse(norms[used].mean()) if used.any() else 1.0
        return StackedSystem(
            self.stage, self.matrix * a, self.rhs * a, self.output, self.row_weight * m
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


def _inverse(norm: Tensor) -> Tensor:
    return 1 / torch.where(norm > 0, norm, 1.0)

"""Weights of gradient and weight constraints that are stacked, from each row's own noise.

Stacking both kinds is R-GAP's idea (Zhu and Blaschko, ICLR 2021, arXiv 2010.07733); weights that
follow from each row's own noise are this project's.
"""

from typing import Self

import torch
from torch import Tensor

from rconv.linalg.equations import worth


class TwoKinds:
    """Rows of both kinds, weighed; what follows from their sizes and errors alone.

    Attributes
    ----------
    has_gradients : bool
        Whether there are gradient constraints.
    gradient : Tensor
        Their right-hand sides.
    row_weight : Tensor
        Weight of each weight constraint, 0 where the output is unknown.
    gradient_error, output_error : Tensor
        Standard deviations of the errors of both, as they are weighed.
    """

    has_gradients: bool
    gradient: Tensor
    row_weight: Tensor
    gradient_error: Tensor
    output_error: Tensor

    def weighted(self, gradient: float | Tensor, weight: float | Tensor) -> Self:
        """Both blocks multiplied: by a factor, or row by row."""
        raise NotImplementedError

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Norms of the rows of both kinds, as they are weighed."""
        raise NotImplementedError

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of b's errors, (1, m, 1); 0 for rows that are not used."""
        weight = self.output_error * (self.row_weight > 0)
        return self._rows(self.gradient_error.expand_as(self.gradient), weight)

    @property
    def used(self) -> bool:
        """Whether it has any row at all."""
        return self.has_gradients or bool(self.row_weight.any())

    def scaled(self) -> Self:
        """Both blocks divided by their mean row norm, so that neither drowns the other."""
        a, m = (1 / size for size in self._mean_sizes())
        return self.weighted(a, m)

    def whitened(self) -> Self:
        """Rows divided by their own error, as far as `TRUST` allows; a mean row norm of about one.

        Where the error of some rows is unknown, both blocks are divided by their size.
        """
        return self.weighed_against(self.least_error())

    def least_error(self) -> float:
        """The smallest error of a row that is used, in the unit of its block's mean row norm."""
        sizes = self._mean_sizes()
        used = self.has_gradients, bool(self.row_weight.any())
        blocks = zip((self.gradient_error, self.output_error), sizes, used, strict=True)
        return min((float(error.min()) / size for error, size, own in blocks if own), default=0.0)

    def weighed_against(self, least: float) -> Self:
        """Rows divided by their error in units of `least`; both blocks by their size if it is 0."""
        if least <= 0:
            return self.scaled()
        sizes = self._mean_sizes()
        errors = self.gradient_error / sizes[0], self.output_error / sizes[1]
        factors = (worth(e, least) / size for e, size in zip(errors, sizes, strict=True))
        return self.weighted(*factors)

    def _mean_sizes(self) -> tuple[float, float]:
        """Mean norm of the gradient rows and of the weight rows that are used; 1 for none."""
        gradient, weight = self.row_sizes()
        a = float(gradient.mean()) if self.has_gradients else 0.0
        used = self.row_weight > 0
        m = float(weight[used].mean()) if used.any() else 0.0
        return a or 1.0, m or 1.0

    def _rows(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Both blocks of rows as one, (1, m, 1)."""
        return torch.cat([gradient.flatten(), weight.flatten()])[None, :, None]

"""All equations of one convolution for one image, written out as rows, with any of them left out.

The attack itself never writes them out: it needs every row, and then has cheaper ways.
"""

import numpy as np
import scipy
import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.weight import weight_matrix
from rconv.linalg.equations import DenseRows
from rconv.model.geometry import Stage

TOUCHING = 1e-10
"""Share of the largest entry up to which one counts as zero: what rounding leaves is some 1e-14."""


class Rows(DenseRows):
    """Equations A x = b of one image, matrix (1, m, n) and right-hand side (1, m, 1)."""

    @staticmethod
    def of(stage: Stage, passed: Passed, weight_gradient: Tensor) -> "Rows":
        """Gradient and weight constraints that are known, each kind divided by its mean norm.

        Parameters
        ----------
        stage : Stage
            The convolution.
        passed : Passed
            Its output and cotangent, for one image.
        weight_gradient : Tensor
            ∂ℓ/∂W, (1, D, C, kh, kw). A zero in it is a missing entry, and so a missing row.

        Returns
        -------
        Rows
            For the unknown vec(X), n = C·H·W.
        """
        g = stage.geometry
        block = gradient_matrix(passed.cotangent, g)[0]
        sums = gradient_rhs(weight_gradient)[0]
        counts = (sums != 0).sum(dim=0).tolist()
        gradient = sums.new_zeros(sum(counts), g.input[0], g.pixels)
        for c, part in enumerate(gradient.split(counts)):
            part[:, c] = block[sums[:, c] != 0]
        known = passed.weight[0].flatten() > 0
        sparse = weight_matrix(stage.weight, g)[known.numpy()]
        bias = 0.0 if stage.bias is None else stage.bias[:, None, None]
        scale = passed.weight[0].flatten()[known, None]
        weight = torch.from_numpy(sparse.toarray()) * scale
        output = (passed.value[0] - bias).flatten()[known, None] * scale
        parts = (gradient.flatten(1), sums.T[sums.T != 0][:, None]), (weight, output)
        sizes = [1 / matrix.norm(dim=1).mean() if len(matrix) else 1.0 for matrix, _ in parts]
        return Rows(
            torch.cat([m * size for (m, _), size in zip(parts, sizes, strict=True)])[None],
            torch.cat([b * size for (_, b), size in zip(parts, sizes, strict=True)])[None],
        )

    def nonnegative(self) -> Tensor:
        """Least squares over x ≥ 0: Lawson and Hanson's active set, scipy's.

        Where A has fewer than n independent rows, x with many zeros can still be the only one that
        fits: the bounds that it touches take the place of the missing equations.

        Returns
        -------
        Tensor
            (n,); entries below `TOUCHING` times the largest are zero.
        """
        steps = 10 * self.unknowns
        x, _ = scipy.optimize.nnls(self.matrix[0].numpy(), self.rhs[0, :, 0].numpy(), maxiter=steps)
        return torch.from_numpy(np.where(x > TOUCHING * x.max(), x, 0.0))

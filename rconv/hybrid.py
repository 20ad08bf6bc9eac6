"""Gradient and weight constraints of one convolution, solved together for one image.

Beyond the paper: the two kinds of equations share the unknown, so that what one kind leaves
open the other may close, and noise that one amplifies the other holds down.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from rconv.constraints import weight_gram
from rconv.geometry import Stage
from rconv.solvers import CONDITION_LIMIT, Solution, Spectrum, rank_floor, relative

REFINEMENTS = 5
MAX_UNKNOWNS = 12_000
"""Above it the normal matrix alone takes more than 1.1 GB; the dense solve is refused."""


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


def solve_stacked(system: StackedSystem, tolerance: float) -> Solution:
    """Weighted least squares over both kinds of rows.

    Parameters
    ----------
    system : the equations of one image.
    tolerance : relative noise of the equations; directions that the rows see less than this
        do not count towards the rank.

    Returns
    -------
    Solution of one image, value (1, C·H·W); of minimum norm where the rank is short.
    """
    system = system.scaled()
    gram = system.normal_matrix()
    factor, info = torch.linalg.cholesky_ex(gram)

    def inverse(v: Tensor) -> Tensor:
        return torch.cholesky_solve(v, factor)

    spectrum = Spectrum.estimate(lambda v: gram @ v, inverse, gram[None, :, 0])
    rank = gram.shape[0]
    floor = max(rank_floor(tolerance), 1 / CONDITION_LIMIT)
    if info != 0 or not spectrum.condition < 1 / floor:
        inverse, rank, spectrum = _pseudo_inverse(gram, floor)
    x = _refine(system, inverse)
    rhs = torch.cat([r.flatten() for r in system.residual(torch.zeros_like(x))])[None]
    left = torch.cat([r.flatten() for r in system.residual(x)])[None]
    return Solution(
        x.T,
        torch.tensor([rank], device=x.device),
        spectrum.condition,
        spectrum.amplification(rhs[rhs != 0][None], x.T),
        relative(left, rhs),
    )


def _refine(system: StackedSystem, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Iterative refinement from zero, until a step is rounding or no longer shrinks."""
    x = torch.zeros(
        system.stage.geometry.unknowns, 1, dtype=system.output.dtype, device=system.output.device
    )
    last = torch.inf
    for _ in range(REFINEMENTS):
        step = inverse(system.adjoint(*system.residual(x)))
        size = float(step.norm())
        if not size < last:
            break
        x, last = x + step, size
        if size <= 1e-15 * float(x.norm()):
            break
    return x


def _pseudo_inverse(gram: Tensor, floor: float):
    """Inverse of AᵀA on the directions it knows (σ above floor · σ_max), their number, spectrum.

    With AᵀA = F Fᵀ and F of full column rank, the pseudoinverse is F (FᵀF)⁻² Fᵀ, and FᵀF has the
    eigenvalues of AᵀA that are not zero. Where it is badly conditioned in turn, these decide.
    """
    factor = _range_factor(gram)
    small = factor.mT @ factor
    triangle, info = torch.linalg.cholesky_ex(small)
    mean_square = len(small) / len(gram)

    def solve(v: Tensor) -> Tensor:
        return torch.cholesky_solve(v, triangle)

    if len(small) and info == 0:
        spectrum = Spectrum.estimate(lambda v: small @ v, solve, small[None, :, 0])
        if spectrum.condition < 1 / floor:
            spectrum = replace(spectrum, inverse_square=spectrum.inverse_square * mean_square)
            return lambda v: factor @ solve(solve(factor.mT @ v)), len(small), spectrum
    values, vectors = torch.linalg.eigh(small)
    known = values > values[-1:] * floor**2
    values, vectors = values[known], factor @ vectors[:, known]
    extremes = values[[-1, 0]] if len(values) else values.new_tensor([torch.inf, 1.0])
    condition = (extremes[0] / extremes[1]).sqrt()
    spectrum = Spectrum(condition[None], (1 / values).sum()[None] / len(gram))
    return lambda v: vectors @ ((vectors.mT @ v) / values[:, None] ** 2), len(values), spectrum


def _range_factor(gram: Tensor) -> Tensor:
    """F (n, r) of full column rank r with F Fᵀ = `gram` (n, n) up to rounding."""
    packed, pivots, rank, _ = dpstrf(gram.cpu().numpy(), lower=1)
    factor = np.empty((len(gram), rank))
    factor[pivots - 1] = np.tril(packed[:, :rank])
    return torch.from_numpy(factor).to(gram)


def _inverse(norm: Tensor) -> Tensor:
    return 1 / torch.where(norm > 0, norm, 1.0)

"""Gradient and weight constraints of one convolution, solved together for one image.

Beyond the paper: the two kinds of equations share the unknown, so that what one kind leaves
open the other may close, and noise that one amplifies the other holds down.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
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
    """Inverse of AᵀA on the directions it knows (σ above floor · σ_max), their number, spectrum."""
    values, vectors = torch.linalg.eigh(gram)
    known = values > values[-1] * floor**2
    rank = int(known.sum())
    inverse = torch.where(known, 1 / torch.where(known, values, 1.0), 0.0)
    condition = (
        (values[-1] * inverse.max()).sqrt() if rank else torch.full_like(inverse[0], torch.inf)
    )
    spectrum = Spectrum(condition[None], inverse.mean()[None])
    return lambda v: vectors @ (inverse[:, None] * (vectors.T @ v)), rank, spectrum


def _inverse(norm: Tensor) -> Tensor:
    return 1 / torch.where(norm > 0, norm, 1.0)

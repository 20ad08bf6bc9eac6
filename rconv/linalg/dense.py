"""Stacked, weighted equations of one unknown, solved by a dense factorisation."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, Solution, Spectrum, rank_floor, relative

MAX_UNKNOWNS = 12_000
"""Above it the normal matrix alone takes more than 1.1 GB; the dense solve is refused."""


class Stacked(Protocol):
    """The equations as the solver sees them; see `rconv.equations.system.StackedSystem`."""

    def scaled(self) -> "Stacked":
        """The same equations, each kind divided by its size."""

    def normal_matrix(self) -> Tensor:
        """(n, n) AᵀA of all rows."""

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """b - A x at x (n, 1), in two parts."""

    def adjoint(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Aᵀ applied to the two parts of a residual: (n, 1)."""


def solve_stacked(system: Stacked, tolerance: float, *, scaled: bool = True) -> Solution:
    """Weighted least squares over both kinds of rows.

    Parameters
    ----------
    system : Stacked
        The equations of one image.
    tolerance : float
        Relative noise of the equations; directions that the rows see less than this do not
        count towards the rank.
    scaled : bool
        Divide both kinds of rows by their size first, so that neither drowns the other; R-GAP
        takes them as they come.

    Returns
    -------
    Solution
        Of one image, value (1, n); of minimum norm where the rank is short.
    """
    if scaled:
        system = system.scaled()
    gram = system.normal_matrix()
    factor, info = torch.linalg.cholesky_ex(gram)

    def inverse(v: Tensor) -> Tensor:
        return torch.cholesky_solve(v, factor)

    spectrum = Spectrum.estimate(lambda v: gram @ v, inverse, gram[None, :, 0])
    rank = gram.shape[0]
    floor = max(float(rank_floor(tolerance)), 1 / CONDITION_LIMIT)
    if info != 0 or not spectrum.condition < 1 / floor:
        inverse, rank, spectrum = _pseudo_inverse(gram, floor)
    start = inverse(system.adjoint(*system.residual(gram.new_zeros(len(gram), 1))))
    x = refine(lambda x: inverse(system.adjoint(*system.residual(x[0])))[None], start[None])[0]
    rhs = torch.cat([r.flatten() for r in system.residual(torch.zeros_like(x))])[None]
    left = torch.cat([r.flatten() for r in system.residual(x)])[None]
    return Solution(
        x.T,
        torch.tensor([rank], device=x.device),
        spectrum.condition,
        spectrum.amplification(rhs[rhs != 0][None], x.T),
        relative(left, rhs),
    )


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

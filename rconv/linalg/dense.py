"""Stacked, weighted equations of one unknown, solved by a dense factorisation."""

from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from rconv.linalg.equations import Declined, Equations, residual
from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, Solution, Spectrum, rank_floor, relative

MAX_UNKNOWNS = 12_000
"""Above it the normal matrix alone takes more than 1.1 GB; the dense solve is refused."""

ROUNDED = 64
"""Roundings up to which a pivot of a normal matrix counts as none, or half its side if that is
more, as LAPACK has it: of singular matrices of any size the largest seen had 25."""


class Stacked(Equations, Protocol):
    """One system of rows of two kinds, N = k = 1; see `rconv.equations.system.StackedSystem`."""

    def scaled(self) -> "Stacked":
        """The same equations, each kind divided by its size."""

    def whitened(self) -> "Stacked":
        """The same equations, each row divided by its error, and all by their size."""


def solve_stacked(
    system: Stacked,
    tolerance: float,
    *,
    weigh: str | None = "size",
    budget: int = MAX_UNKNOWNS,
) -> Solution:
    """Weighted least squares over both kinds of rows.

    Parameters
    ----------
    system : Stacked
        The equations of one image.
    tolerance : float
        Relative noise of the equations; directions that the rows see less than this do not
        count towards the rank.
    weigh : str, optional
        "size" divides both kinds of rows by their size first, so that neither drowns the other,
        "noise" every row by its own error; None, as R-GAP, takes them as they come.
    budget : int
        Most unknowns that are taken.

    Returns
    -------
    Solution
        Of one image, value (1, n, 1); of minimum norm where the rank is short.

    Raises
    ------
    Declined
        More unknowns than `budget`.
    """
    if system.unknowns > budget:
        raise Declined(f"a dense system of {system.unknowns} unknowns, more than {budget}")
    if weigh is not None:
        system = system.scaled() if weigh == "size" else system.whitened()
    gram = system.normal_matrix()[0]
    factor, info = torch.linalg.cholesky_ex(gram)

    def inverse(v: Tensor) -> Tensor:
        return torch.cholesky_solve(v, factor)

    spectrum = Spectrum.estimate(lambda v: gram @ v, inverse, gram[None, :, 0])
    rank, method, floor = gram.shape[0], "Cholesky", _floor(tolerance)
    if info != 0 or not spectrum.condition < 1 / floor:
        inverse, rank, spectrum = _pseudo_inverse(gram, floor)
        method = "pivoted Cholesky"
    start = inverse(system.adjoint(system.rhs)[0])[None]
    x, iterations, status = refine(
        lambda x: inverse(system.adjoint(residual(system, x))[0])[None], start
    )
    rhs, spread = system.rhs, system.deviation.expand_as(system.rhs)
    told = spread[spread != 0] if spread.any() else spread.new_zeros(1)
    return Solution(
        x,
        torch.tensor([rank], device=x.device),
        spectrum.condition,
        spectrum.amplification(rhs[rhs != 0][None], x),
        relative(residual(system, x), rhs),
        spectrum.amplification(told[None], x),
        iterations,
        (method,),
        status,
    )


def determines(system: Stacked, tolerance: float) -> bool:
    """Whether the rows determine the unknown; costs a fifth of `solve_stacked` where they do not.

    Parameters
    ----------
    system : Stacked
        The equations of one image.
    tolerance : float
        As `solve_stacked` takes it.

    Returns
    -------
    bool
        Whether the rank, each row divided by its own error, is full.
    """
    gram = system.whitened().normal_matrix()[0]
    factor, info = torch.linalg.cholesky_ex(gram)
    if info != 0:
        return False
    inverse = partial(torch.cholesky_solve, input2=factor)
    spectrum = Spectrum.estimate(gram.matmul, inverse, gram[None, :, 0])
    return bool(spectrum.condition < 1 / _floor(tolerance))


def _floor(tolerance: float) -> float:
    """Singular values that count are above this share of the largest."""
    return max(float(rank_floor(tolerance)), 1 / CONDITION_LIMIT)


def _pseudo_inverse(gram: Tensor, floor: float):
    """Inverse of AᵀA on the directions it knows (σ above floor · σ_max), their number, spectrum.

    With AᵀA = F Fᵀ and F of full column rank, the pseudoinverse is F (FᵀF)⁻² Fᵀ, and FᵀF has the
    eigenvalues of AᵀA that are not zero. Where it is badly conditioned in turn, these decide.
    """
    packed, order = range_factor(gram.cpu().numpy())
    factor = torch.from_numpy(packed[order.argsort()]).to(gram)
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


def range_factor(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pivoted Cholesky factorisation of a normal matrix, which may be singular.

    Parameters
    ----------
    gram : np.ndarray
        (n, n).

    Returns
    -------
    factor : np.ndarray
        F, (n, r), lower triangular and of full column rank r.
    order : np.ndarray
        (n,): F Fᵀ is `gram` with rows and columns in this order, up to rounding.
    """
    floor = max(len(gram) / 2, ROUNDED) * np.finfo(float).eps * gram.diagonal().max(initial=0.0)
    packed, pivots, rank, _ = dpstrf(gram, lower=1, tol=floor)
    return np.tril(packed[:, :rank]), pivots - 1


def null_space(gram: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the directions that a normal matrix does not know.

    Parameters
    ----------
    gram : np.ndarray
        AᵀA, (n, n).

    Returns
    -------
    np.ndarray
        (n, r), to about half the digits of float64.
    """
    factor, order = range_factor(gram)
    rank = factor.shape[1]
    basis = np.zeros((len(gram), len(gram) - rank))
    basis[order[:rank]] = -solve_triangular(factor[:rank].T, factor[rank:].T, lower=False)
    basis[order[rank:]] = np.eye(len(gram) - rank)
    return np.linalg.qr(basis)[0]

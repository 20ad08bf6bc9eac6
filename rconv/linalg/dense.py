"""Stacked, weighted equations of one unknown, solved by a dense factorisation."""

from typing import Protocol

import torch
from torch import Tensor

from rconv.linalg.cholesky import Inverse
from rconv.linalg.equations import Declined, Equations, residual
from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, CONVERGED, Solution, rank_floor, relative

MAX_UNKNOWNS = 12_000
"""Above it the normal matrix alone takes more than 1.1 GB; the dense solve is refused."""

SINGLE_FROM = 1_000
"""Unknowns from which a factorisation in single precision and more corrections cost less."""

SINGLE_LIMIT = 1e3
"""Condition up to which it serves: a correction leaves its square times 6e-8 of the error."""


SURE_LIMIT = 1e2
"""Condition up to which a factorisation in single precision proves that the rank is full: rounding
alone looks like 1e3 and more, since it is some 1e-7 of the normal matrix."""


class Stacked(Equations, Protocol):
    """One system of rows of two kinds, N = k = 1; see `rconv.equations.system.StackedSystem`."""

    def scaled(self) -> "Stacked":
        """The same equations, each kind divided by its size."""

    def whitened(self) -> "Stacked":
        """The same equations, each row divided by its error, and all by their size."""

    def normal_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """AᵀA, (1, n, n), in this precision."""


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
    limit = min(SINGLE_LIMIT, 1 / _floor(tolerance))
    known = _single(system, limit) if weigh is not None else None
    found = None if known is None else _refined(system, known)
    if found is None or found[2] != (CONVERGED,):
        gram, floor = system.normal_matrix()[0], _floor(tolerance)
        known = Inverse.of(gram)
        if known is None or not known.spectrum.condition < 1 / floor:
            known = Inverse.pseudo(gram, floor)
        found = _refined(system, known)
    x, iterations, status = found
    rhs, spread = system.rhs, system.deviation.expand_as(system.rhs)
    told = spread[spread != 0] if spread.any() else spread.new_zeros(1)
    return Solution(
        x,
        torch.tensor([known.rank], device=x.device),
        known.spectrum.condition,
        known.spectrum.amplification(rhs[rhs != 0][None], x),
        relative(residual(system, x), rhs),
        known.spectrum.amplification(told[None], x),
        iterations,
        (known.method,),
        status,
    )


def _single(system: Stacked, limit: float) -> Inverse | None:
    """The inverse in single precision up to a condition; for weighed rows, none of which is small.

    None for few unknowns, too.
    """
    if system.unknowns < SINGLE_FROM:
        return None
    known = Inverse.of(system.normal_matrix(torch.float32)[0])
    return known if known is not None and known.spectrum.condition < limit else None


def _refined(system: Stacked, known: Inverse) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """`refine`, from what an inverse makes of the normal equations."""

    def correction(rows: Tensor) -> Tensor:
        return known.apply(system.adjoint(rows)[0])[None]

    return refine(lambda x: correction(residual(system, x)), correction(system.rhs))


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
    system, limit = system.whitened(), 1 / _floor(tolerance)
    if _single(system, min(SURE_LIMIT, limit)) is not None:
        return True
    known = Inverse.of(system.normal_matrix()[0])
    return known is not None and bool(known.spectrum.condition < limit)


def _floor(tolerance: float) -> float:
    """Singular values that count are above this share of the largest."""
    return max(float(rank_floor(tolerance)), 1 / CONDITION_LIMIT)

"""One system of all its unknowns, solved by a dense factorisation of its normal matrix."""

import torch
from torch import Tensor

from rconv.linalg.cholesky import Inverse
from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, CONVERGED, Solution, rank_floor, relative
from rconv.linalg.system import System

MAX_UNKNOWNS = 12_000
"""Above it the normal matrix alone takes more than 1.1 GB; the dense solve is refused."""

SINGLE_FROM = 1_000
"""Unknowns from which a factorisation in single precision and more corrections cost less."""

SINGLE_LIMIT = 1e3
"""Condition up to which it serves: a correction leaves its square times 6e-8 of the error."""

SURE_LIMIT = 1e2
"""Condition up to which a factorisation in single precision proves that the rank is full: rounding
alone looks like 1e3 and more, since it is some 1e-7 of the normal matrix."""


def solve_dense(system: System, tolerance: float, *, budget: int = MAX_UNKNOWNS) -> Solution:
    """Least squares over all rows of one system, N = k = 1, as they are weighted.

    Value (1, n, 1); of minimum norm where the rank is short. Directions that the rows see less than
    the tolerance, the relative noise of the equations, do not count towards the rank.

    Raises
    ------
    ValueError
        More unknowns than `budget`.
    """
    if system.count > budget:
        raise ValueError(f"a dense system of {system.count} unknowns, more than {budget}")
    known = _single(system, min(SINGLE_LIMIT, 1 / _floor(tolerance)))
    found = None if known is None else _refined(system, known)
    if found is None or found[2] != (CONVERGED,):
        gram, floor = system.gram()[0], _floor(tolerance)
        known = Inverse.of(gram)
        if known is None or not known.spectrum.condition < 1 / floor:
            known = Inverse.pseudo(gram, floor)
        found = _refined(system, known)
    x, iterations, status = found
    return Solution(
        x,
        torch.tensor([known.rank], device=x.device),
        known.spectrum.condition,
        known.spectrum.amplification(system.rhs, x),
        relative(system.residual(x), system.rhs),
        known.spectrum.amplification(system.std, x),
        iterations,
        (known.method,),
        status,
    )


def _single(system: System, limit: float) -> Inverse | None:
    """The inverse in single precision up to a condition; None beyond it, and for few unknowns."""
    if system.count < SINGLE_FROM:
        return None
    known = Inverse.of(system.gram(torch.float32)[0])
    return known if known is not None and known.spectrum.condition < limit else None


def _refined(system: System, known: Inverse) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """`refine`, from what an inverse makes of the normal equations."""

    def correction(rows: Tensor) -> Tensor:
        return known.apply(system.adjoint(rows)[0])[None]

    return refine(lambda x: correction(system.residual(x)), correction(system.rhs))


def determines(system: System, tolerance: float) -> bool:
    """Whether the rows, divided by their errors, determine the unknown of a system, N = k = 1.

    Costs a fifth of `solve_dense` where they do not.
    """
    system, limit = system.whitened(), 1 / _floor(tolerance)
    if _single(system, min(SURE_LIMIT, limit)) is not None:
        return True
    known = Inverse.of(system.gram()[0])
    return known is not None and bool(known.spectrum.condition < limit)


def _floor(tolerance: float) -> float:
    """Singular values that count are above this share of the largest."""
    return max(float(rank_floor(tolerance)), 1 / CONDITION_LIMIT)

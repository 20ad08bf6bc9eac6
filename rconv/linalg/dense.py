"""One system of all its unknowns, solved by a dense factorisation of its normal matrix."""

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy.linalg import cython_lapack, get_lapack_funcs, solve_triangular
from scipy.linalg.lapack import dpstrf
from threadpoolctl import threadpool_limits
from torch import Tensor

from rconv.linalg.refine import refine
from rconv.linalg.solution import (
    CONDITION_LIMIT,
    CONVERGED,
    Solution,
    Spectrum,
    rank_floor,
    relative,
)
from rconv.linalg.system import System

ROUNDED = 64
"""Roundings up to which a pivot of a normal matrix counts as none, or half its side if that is
more, as LAPACK has it: of singular matrices of any size the largest seen had 25."""

MANY = 500
"""Columns from which a factorisation takes several threads, and much longer than to forbid it."""


ROUTINES = {torch.float32: "spotrf", torch.float64: "dpotrf"}


@dataclass(frozen=True)
class _Inverse:
    """An inverse of AᵀA, or its pseudoinverse: a map (n, k) → (n, k), float64, of so high a `rank`.

    The spectrum is that of A, N = 1; `method` names the factorisation.
    """

    apply: Callable[[Tensor], Tensor]
    rank: int
    spectrum: Spectrum
    method: str

    @staticmethod
    def of(gram: Tensor) -> "_Inverse | None":
        """By Cholesky, in the precision of `gram`, (n, n); None where the matrix is singular."""
        factor = _factor(gram) if len(gram) else None
        if factor is None:
            return None

        def apply(v: Tensor) -> Tensor:
            size = v.abs().amax().clamp(min=1e-300)  # single precision ends at 1e-38
            half = torch.linalg.solve_triangular(factor, (v / size).to(factor), upper=False)
            return torch.linalg.solve_triangular(factor.mT, half, upper=True).double() * size

        def product(v: Tensor) -> Tensor:
            return (gram @ v.to(gram)).double()

        spectrum = Spectrum.estimate(product, apply, gram.new_empty(1, len(gram)).double())
        name = "Cholesky" if gram.dtype == torch.float64 else "Cholesky in single precision"
        return _Inverse(apply, len(gram), spectrum, name)

    @staticmethod
    def pseudo(gram: Tensor, floor: float) -> "_Inverse":
        """On the directions that A knows (σ above floor · σ_max), by pivoted Cholesky.

        With AᵀA = F Fᵀ and F of full column rank, the pseudoinverse is F (FᵀF)⁻² Fᵀ, and FᵀF has
        the eigenvalues of AᵀA that are not zero. Where it is badly conditioned in turn, these
        decide.
        """
        method = "pivoted Cholesky"
        packed, order = range_factor(gram.cpu().numpy())
        factor = torch.from_numpy(packed[order.argsort()]).to(gram)
        small = factor.mT @ factor
        inner = _Inverse.of(small) if len(small) else None
        if inner is not None and inner.spectrum.condition < 1 / floor:
            mean_square = inner.spectrum.inverse_square * (len(small) / len(gram))
            spectrum = replace(inner.spectrum, inverse_square=mean_square)

            def twice(v: Tensor) -> Tensor:
                return factor @ inner.apply(inner.apply(factor.mT @ v))

            return _Inverse(twice, len(small), spectrum, method)
        values, vectors = torch.linalg.eigh(small)
        known = values > values[-1:] * floor**2
        values, vectors = values[known], factor @ vectors[:, known]
        extremes = values[[-1, 0]] if len(values) else values.new_tensor([torch.inf, 1.0])
        condition = (extremes[0] / extremes[1]).sqrt()
        spectrum = Spectrum(condition[None], (1 / values).sum()[None] / len(gram))

        def apply(v: Tensor) -> Tensor:
            return vectors @ ((vectors.mT @ v) / values[:, None] ** 2)

        return _Inverse(apply, len(values), spectrum, method)


def _factor(gram: Tensor) -> Tensor | None:
    """The lower factor, its upper triangle left as it is; None where there is none.

    On a CPU SciPy's LAPACK takes half of PyTorch's time in double precision and a third in
    single, for matrices of 3,072 columns.
    """
    if gram.device.type != "cpu":
        factor, info = torch.linalg.cholesky_ex(gram)
        return factor if info == 0 else None
    # Its threads would go on spinning beside PyTorch's: on two cores half of the time was lost.
    with threadpool_limits(1, "blas") if len(gram) > MANY else nullcontext():
        return cholesky(gram)


def range_factor(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pivoted Cholesky factorisation of a normal matrix (n, n), which may be singular.

    Returns F (n, r), lower triangular and of full column rank r, and the order (n,): F Fᵀ is the
    matrix with rows and columns in this order, up to rounding.
    """
    floor = max(len(gram) / 2, ROUNDED) * np.finfo(float).eps * gram.diagonal().max(initial=0.0)
    packed, pivots, rank, _ = dpstrf(gram, lower=1, tol=floor)
    return np.tril(packed[:, :rank]), pivots - 1


def null_space(gram: np.ndarray, weak: float = 0.0) -> np.ndarray:
    """Orthonormal basis (n, r) of the directions that a normal matrix (n, n) does not know.

    To about half the digits of float64. Singular values up to the share `weak` of the largest count
    as zero, by an eigendecomposition, which takes about ten times as long; by default those that
    are zero up to rounding.
    """
    if weak:
        values, vectors = np.linalg.eigh(gram)
        return vectors[:, values <= weak**2 * values.max(initial=0.0)]
    factor, order = range_factor(gram)
    rank = factor.shape[1]
    basis = np.zeros((len(gram), len(gram) - rank))
    basis[order[:rank]] = -solve_triangular(factor[:rank].T, factor[rank:].T, lower=False)
    basis[order[rank:]] = np.eye(len(gram) - rank)
    return np.linalg.qr(basis)[0]


def cholesky(gram: Tensor) -> Tensor | None:
    """The lower factor of a positive definite matrix, by SciPy's LAPACK; None if singular.

    SciPy's own wrapper holds Python's lock while it factors, so that two systems cannot be factored
    side by side. Its LAPACK can be called without: its addresses are public, for Cython and for
    ctypes, which gives the lock back. The matrix (n, n) is float32 or float64, contiguous, on the
    CPU; what is above the diagonal of the factor is left as it was.
    """
    routine = _routine(ROUTINES[gram.dtype])
    if routine is None:
        columns = gram.numpy().T
        packed, info = get_lapack_funcs(("potrf",), (columns,))[0](columns, lower=1, clean=0)
        return torch.from_numpy(packed) if info == 0 else None
    factor, size, info = gram.clone(), ctypes.c_int(len(gram)), ctypes.c_int()
    # LAPACK sees the transpose of what lies row by row, and of its upper factor the lower one.
    routine(b"U", size, factor.data_ptr(), size, info)
    return factor if info.value == 0 else None


@cache
def _routine(name: str) -> Callable[..., None] | None:
    """LAPACK's own, (triangle, n, matrix, n, info); None where integers are no C integers."""
    capsule = cython_lapack.__pyx_capi__[name]
    signature = _pythonapi("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)(capsule)
    if signature.count(b" int *") != 3:
        return None
    get = _pythonapi("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    integer = ctypes.POINTER(ctypes.c_int)
    kinds = ctypes.c_char_p, integer, ctypes.c_void_p, integer, integer
    return ctypes.CFUNCTYPE(None, *kinds)(get(capsule, signature))


def _pythonapi(name: str, result: type, *kinds: type) -> Callable[..., object]:
    """A function of Python's own interface for C."""
    return ctypes.PYFUNCTYPE(result, *kinds)((name, ctypes.pythonapi))


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
    the tolerance, the relative noise of the equations, do not count towards the rank. Raises
    ValueError for more unknowns than `budget`.
    """
    if system.count > budget:
        raise ValueError(f"a dense system of {system.count} unknowns, more than {budget}")
    known = _single(system, min(SINGLE_LIMIT, 1 / _floor(tolerance)))
    found = None if known is None else _refined(system, known)
    if found is None or found[2] != (CONVERGED,):
        gram, floor = system.gram()[0], _floor(tolerance)
        known = _Inverse.of(gram)
        if known is None or not known.spectrum.condition < 1 / floor:
            known = _Inverse.pseudo(gram, floor)
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


def _single(system: System, limit: float) -> _Inverse | None:
    """The inverse in single precision up to a condition; None beyond it, and for few unknowns."""
    if system.count < SINGLE_FROM:
        return None
    known = _Inverse.of(system.gram(torch.float32)[0])
    return known if known is not None and known.spectrum.condition < limit else None


def _refined(system: System, known: _Inverse) -> tuple[Tensor, Tensor, tuple[str, ...]]:
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
    known = _Inverse.of(system.gram()[0])
    return known is not None and bool(known.spectrum.condition < limit)


def _floor(tolerance: float) -> float:
    """Singular values that count are above this share of the largest."""
    return max(float(rank_floor(tolerance)), 1 / CONDITION_LIMIT)

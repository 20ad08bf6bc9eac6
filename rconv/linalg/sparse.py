"""Weight constraints belong to the model: a sparse system, factored once for all images."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, Solution, Spectrum, rank_floor, relative

MOST_SMALL = 128
"""Small singular directions that are looked for, at most: a system that has more of them below
the noise counts as knowing none beyond these, and says a rank that is too large by the rest."""


class SparseSystem:
    """A sparse system factored once, for many right-hand sides.

    Parameters
    ----------
    matrix : scipy.sparse.csr_matrix
        (m, n) with m ≥ n. Square systems are factored themselves, tall ones by their normal
        equations; both are refined against `matrix`.

    Attributes
    ----------
    spectrum : Spectrum or None
        Of `matrix`; None where it is singular.
    """

    def __init__(self, matrix: sparse.csr_matrix):
        self.matrix = matrix
        self._square = matrix.shape[0] == matrix.shape[1]
        system = matrix if self._square else matrix.T @ matrix
        try:
            self._factor = sparse.linalg.splu(system.tocsc(), permc_spec="MMD_ATA")
        except RuntimeError:  # SuperLU: "Factor is exactly singular"
            self._factor = self.spectrum = None
        else:
            self.spectrum = self._estimate()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        # SuperLU's factors can be neither copied nor pickled; they are made anew.
        return type(self), (self.matrix,)

    @property
    def regular(self) -> bool:
        """Whether the system has full column rank in float64."""
        limit = CONDITION_LIMIT**2 if self._square else CONDITION_LIMIT
        return self.spectrum is not None and bool(self.spectrum.condition < limit)

    def solve(self, rhs: Tensor, tolerance: float = 0.0) -> Solution:
        """Least-squares solution of many right-hand sides.

        Parameters
        ----------
        rhs : Tensor
            b, (N, m).
        tolerance : float
            Relative error of b. Directions that the equations see more weakly, measured by
            their largest singular value, are left out and do not count towards the rank.

        Returns
        -------
        Solution
            With value (N, n), the same rank for all.
        """
        b = rhs.detach().cpu().numpy().T

        def correction(x: Tensor) -> Tensor:
            return torch.from_numpy(self._least_squares(b - self.matrix @ x.numpy().T).T)

        x = refine(correction, torch.from_numpy(self._least_squares(b).T))
        directions, spectrum = self._known(float(rank_floor(tolerance)))
        if directions is not None:
            x = x - (x @ directions) @ directions.T
        lost = 0 if directions is None else directions.shape[1]
        residual = torch.from_numpy((b - self.matrix @ x.numpy().T).T)
        value = x.contiguous().to(rhs)
        return Solution(
            value,
            torch.full((len(rhs),), self.matrix.shape[1] - lost, device=rhs.device),
            spectrum.condition.to(rhs).expand(len(rhs)),
            spectrum.amplification(rhs.cpu(), value.cpu()).to(rhs),
            relative(residual.to(rhs), rhs),
        )

    def _known(self, floor: float) -> tuple[Tensor | None, Spectrum]:
        """Directions (n, k) below the floor, None if there are none, and the others' spectrum."""
        if self.spectrum.condition < 1 / floor:
            return None, self.spectrum
        values, directions = self._smallest
        below = values < floor * self._largest
        if not below.any():
            return None, self.spectrum
        squares, n = 1 / values**2, self.matrix.shape[1]
        # Of the others the estimate knows the sum; none is larger than the last one found.
        rest = float(self.spectrum.inverse_square * n - squares.sum())
        rest = min(max(rest, 0.0), (n - len(values)) * float(squares.min()))
        left = (squares[~below].sum() + rest).reshape(1) / n
        smallest = values[~below].min() if (~below).any() else floor * self._largest
        condition = (self._largest / smallest).reshape(1)
        return directions[:, below], Spectrum(condition, left)

    @cached_property
    def _largest(self) -> Tensor:
        """Largest singular value."""
        value = sparse.linalg.svds(self.matrix, 1, return_singular_vectors=False, random_state=0)
        return torch.tensor(value[0], dtype=torch.float64)

    @cached_property
    def _smallest(self) -> tuple[Tensor, Tensor]:
        """The smallest singular values (k,) and their right singular vectors (n, k)."""
        n = self.matrix.shape[1]
        k = min(MOST_SMALL, n - 1)
        inverse = sparse.linalg.LinearOperator((n, n), self._inverse_gram, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(n)
        values, vectors = sparse.linalg.eigsh(inverse, k, which="LM", v0=start)
        return torch.from_numpy(values**-0.5), torch.from_numpy(vectors)

    def _least_squares(self, b: np.ndarray) -> np.ndarray:
        return self._factor.solve(b if self._square else self.matrix.T @ b)

    def _inverse_gram(self, v: np.ndarray) -> np.ndarray:
        return self._factor.solve(self._factor.solve(v, "T") if self._square else v)

    def _estimate(self) -> Spectrum:
        def columns(function: Callable[[np.ndarray], np.ndarray]):
            return lambda v: torch.from_numpy(function(v[0].numpy()))[None]

        like = torch.empty(1, self.matrix.shape[1], dtype=torch.float64)
        return Spectrum.estimate(
            columns(lambda v: self.matrix.T @ (self.matrix @ v)),
            columns(self._inverse_gram),
            like,
        )

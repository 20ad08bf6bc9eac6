"""Weight constraints belong to the model: a sparse system, factored once for all images."""

from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from rconv.linalg.refine import refine
from rconv.linalg.solution import CONDITION_LIMIT, Solution, Spectrum, rank_floor, relative

FIRST = 16
"""Small singular directions that are looked for at first; twice as many while all are small."""

MOST_SMALL = 128
"""Small singular directions that are looked for, at most: a system that has more of them below
the noise counts as knowing none beyond these, and says a rank that is too large by the rest."""


class SparseFactor:
    """A sparse system (m, n), m ≥ n, factored once, for many right-hand sides.

    Square systems are factored themselves, tall ones by their normal equations; both are refined
    against the matrix. `spectrum` is None where it is singular.
    """

    def __init__(self, matrix: sparse.csr_matrix):
        self.matrix = matrix
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
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

    def solve(
        self, rhs: Tensor, std: float | Tensor = 0.0, tolerance: float | Tensor = 0.0
    ) -> Solution:
        """Least-squares solutions of many right-hand sides.

        Takes `rhs` (N, m), whose errors have the standard deviation `std`, and returns values (N,
        n, 1). Directions whose singular value, relative to the largest, is below `tolerance`, the
        relative error of b, are left out and do not count towards the rank.
        """
        b = rhs.detach().cpu().numpy().T

        def correction(x: Tensor) -> Tensor:
            return torch.from_numpy(self._least_squares(b - self.matrix @ x.numpy().T).T)

        start = torch.from_numpy(self._least_squares(b).T)
        x, iterations, status = refine(correction, start)
        floor = rank_floor(tolerance).cpu().expand(len(x))
        x, lost, spectrum = self._without(x, floor)
        residual = torch.from_numpy((b - self.matrix @ x.numpy().T).T)
        value = x.contiguous().to(rhs)
        spread = torch.as_tensor(std, dtype=rhs.dtype).cpu().expand(rhs.shape)
        return Solution(
            value[..., None],
            self.matrix.shape[1] - lost.to(rhs.device),
            spectrum.condition.to(rhs),
            spectrum.amplification(rhs.cpu(), value.cpu()).to(rhs),
            relative(residual.to(rhs), rhs),
            spectrum.amplification(spread, value.cpu()).to(rhs),
            iterations.to(rhs.device),
            ("sparse LU",) * len(value),
            status,
        )

    def _without(self, x: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        """Solutions without the directions below the floor, their number, and the spectrum."""
        spectrum = Spectrum(*(getattr(self.spectrum, f.name).expand(len(x)).clone()
                              for f in fields(Spectrum)))  # fmt: skip
        lost = torch.zeros(len(x), dtype=torch.int64)
        if (spectrum.condition * floor < 1).all():
            return x, lost, spectrum
        values, directions = self._below(float(floor.max()) * self._largest)
        for i, limit in enumerate((floor * self._largest).tolist()):
            below = values < limit
            if below.any():
                weak = directions[:, below]
                x[i] = x[i] - weak @ (weak.T @ x[i])
                lost[i] = below.sum()
                kept = min(values[~below].tolist(), default=limit)
                spectrum.condition[i] = self._largest / kept
                spectrum.inverse_square[i] = self._left(values, below)
        return x, lost, spectrum

    def _left(self, values: Tensor, below: Tensor) -> Tensor:
        """Mean of 1 / σ² without those below, from the smallest `values` (k,)."""
        squares, n = 1 / values**2, self.matrix.shape[1]
        # Of the others the estimate knows the sum; none is larger than the last one found.
        rest = float(self.spectrum.inverse_square * n - squares.sum())
        rest = min(max(rest, 0.0), (n - len(values)) * float(squares.min()))
        return (squares[~below].sum() + rest) / n

    def _below(self, limit: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest singular values (k,), at least one not below the limit, and directions."""
        n, k = self.matrix.shape[1], FIRST
        while True:
            k = min(k, MOST_SMALL, n - 1)
            values, directions = self._smallest(k)
            if values.max() >= limit or k == min(MOST_SMALL, n - 1):
                return values, directions
            k *= 2

    @cached_property
    def _largest(self) -> Tensor:
        """Largest singular value."""
        value = sparse.linalg.svds(self.matrix, 1, return_singular_vectors=False, random_state=0)
        return torch.tensor(value[0], dtype=torch.float64)

    def _smallest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k smallest singular values, and their right singular vectors (n, k)."""
        if k not in self._found:
            n = self.matrix.shape[1]
            inverse = sparse.linalg.LinearOperator((n, n), self._inverse_gram, dtype=np.float64)
            start = np.random.default_rng(0).standard_normal(n)
            values, vectors = sparse.linalg.eigsh(inverse, k, which="LM", v0=start)
            self._found[k] = torch.from_numpy(values**-0.5), torch.from_numpy(vectors)
        return self._found[k]

    def _least_squares(self, b: np.ndarray) -> np.ndarray:
        return self._factor.solve(b if self._square else self.matrix.T @ b)

    def _inverse_gram(self, v: np.ndarray) -> np.ndarray:
        return self._factor.solve(self._factor.solve(v, "T") if self._square else v)

    def _estimate(self) -> Spectrum:
        def columns(function: Callable[[np.ndarray], np.ndarray]):
            return lambda v: torch.from_numpy(function(v[0].numpy()))[None]

        like = torch.empty(1, self.matrix.shape[1], dtype=torch.float64)
        return Spectrum.estimate(
            columns(lambda v: self.matrix.T @ (self.matrix @ v)), columns(self._inverse_gram), like
        )

"""Weight constraints belong to the model: a sparse system, factored once for all images."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from rconv.linalg.normal import REFINED, REFINEMENTS
from rconv.linalg.solution import CONDITION_LIMIT, Solution, Spectrum, relative


class SparseSystem:
    """A sparse system factored once, for many right-hand sides.

    Parameters
    ----------
    matrix : (m, n) with m ≥ n. Square systems are factored themselves, tall ones by their
        normal equations; both are refined against `matrix`.

    Attributes
    ----------
    spectrum : of `matrix`, or None where it is singular.
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

    @property
    def regular(self) -> bool:
        """Whether the system has full column rank, numerically."""
        limit = CONDITION_LIMIT**2 if self._square else CONDITION_LIMIT
        return self.spectrum is not None and bool(self.spectrum.condition < limit)

    def solve(self, rhs: Tensor) -> Solution:
        """Least-squares solution, value (N, n), for rhs (N, m)."""
        b = rhs.detach().cpu().numpy().T
        x = self._least_squares(b)
        for _ in range(REFINEMENTS):
            step = self._least_squares(b - self.matrix @ x)
            x = x + step
            if (np.linalg.norm(step, axis=0) <= REFINED * np.linalg.norm(x, axis=0)).all():
                break
        value = torch.from_numpy(np.ascontiguousarray(x.T)).to(rhs)
        residual = torch.from_numpy((b - self.matrix @ x).T).to(rhs)
        count = torch.full((len(rhs),), self.matrix.shape[1], device=rhs.device)
        return Solution(
            value,
            count,
            self.spectrum.condition.to(rhs).expand(len(rhs)),
            self.spectrum.amplification(rhs.cpu(), value.cpu()).to(rhs),
            relative(residual, rhs),
        )

    def _least_squares(self, b: np.ndarray) -> np.ndarray:
        return self._factor.solve(b if self._square else self.matrix.T @ b)

    def _estimate(self) -> Spectrum:
        def columns(function: Callable[[np.ndarray], np.ndarray]):
            return lambda v: torch.from_numpy(function(v[0].numpy()))[None]

        def inverse(v: np.ndarray) -> np.ndarray:
            return self._factor.solve(self._factor.solve(v, "T") if self._square else v)

        like = torch.empty(1, self.matrix.shape[1], dtype=torch.float64)
        return Spectrum.estimate(
            columns(lambda v: self.matrix.T @ (self.matrix @ v)), columns(inverse), like
        )

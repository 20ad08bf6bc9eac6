"""What is known of a convolution's input besides equations: its range, and silent outputs.

The input is that of one image, or those of a batch side by side.

Behind a ReLU nothing is negative, an image has its range, and where a ReLU is silent, the output
of the convolution is not positive. Inequalities that leave no room become equations again.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rconv.equations.batch import BatchSystem
from rconv.equations.system import StackedSystem


@dataclass(frozen=True)
class Bounds:
    """Inequalities of the unknown vec(X).

    Parameters
    ----------
    system : StackedSystem or BatchSystem
        Its equations; their `bounds` are the range of X.
    silent : Tensor
        Shaped as the system's output, bool: outputs O that are known not to be positive.
    """

    system: StackedSystem | BatchSystem
    silent: Tensor

    def along(self, start: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins at start + basis · z: h (m,) and G (m, r), in the unit of X.

        Low bounds first, then high ones, then silent outputs over the norm of their rows; what is
        not bounded has no row.
        """
        low, high = self.system.bounds
        margins, slopes = [], []
        if np.isfinite(low):
            margins.append(start - low)
            slopes.append(basis)
        if np.isfinite(high):
            margins.append(high - start)
            slopes.append(-basis)
        if self.silent.any():
            norms = self.system.stage.row_norms().expand_as(self.silent)[self.silent].cpu().numpy()
            margins.append(-self._outputs(start[:, None], biased=True)[:, 0] / norms)
            slopes.append(-self._outputs(basis, biased=False) / norms[:, None])
        if not margins:
            return np.zeros(0), np.zeros((0, basis.shape[1]))
        return np.concatenate(margins), np.concatenate(slopes)

    def closed(self, active: np.ndarray) -> "FixedSystem":
        """The equations with those of `active` (m,) that hold with equality, in the order above."""
        n, rest = self.system.unknowns, active
        fixed = np.full(n, np.nan)
        for bound in self.system.bounds:
            if np.isfinite(bound):
                fixed[rest[:n]], rest = bound, rest[n:]
        system, touching = self.system, torch.zeros_like(self.silent)
        if len(rest):
            touching[self.silent] = torch.from_numpy(rest).to(touching.device)
            bias = system.stage.bias
            zero = torch.zeros_like(system.output) if bias is None else -bias[:, None, None]
            system = replace(
                system,
                output=torch.where(touching, zero, system.output),
                row_weight=torch.where(touching, 1.0, system.row_weight),
            )
        return FixedSystem(system, torch.from_numpy(fixed).to(system.output))

    def _outputs(self, columns: np.ndarray, *, biased: bool) -> np.ndarray:
        """(n, k) → the silent outputs of each column, (s, k)."""
        stage = self.system.stage
        x = torch.from_numpy(columns.T.copy()).to(stage.weight).reshape(-1, *stage.geometry.input)
        output = stage.convolve(x)
        if biased and stage.bias is not None:
            output = output + stage.bias[:, None, None]
        return output.reshape(-1, *self.silent.shape)[:, self.silent].T.cpu().numpy()


@dataclass(frozen=True)
class FixedSystem:
    """A system some of whose unknowns are known; see `rconv.linalg.equations.Equations`.

    Parameters
    ----------
    system : StackedSystem or BatchSystem
        Of all unknowns.
    fixed : Tensor
        (n,): their values, NaN for those that are to be found.
    """

    system: StackedSystem | BatchSystem
    fixed: Tensor

    @property
    def free(self) -> Tensor:
        """(n,), bool: the unknowns that are left."""
        return self.fixed.isnan()

    @property
    def unknowns(self) -> int:
        """How many are left."""
        return int(self.free.sum())

    @property
    def bounds(self) -> tuple[float, float]:
        """Of X."""
        return self.system.bounds

    @property
    def deviation(self) -> Tensor:
        """(1, m, 1), that of the system's rows."""
        return self.system.deviation

    @property
    def rhs(self) -> Tensor:
        """b without what the known unknowns add to it, (1, m, 1)."""
        return self.system.rhs - self.system.product(self.fixed.nan_to_num()[None, :, None])

    def product(self, x: Tensor) -> Tensor:
        """A x: (1, n', 1) → (1, m, 1)."""
        return self.system.product(self.whole(x, torch.zeros_like(self.fixed)))

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (1, m, 1) → (1, n', 1)."""
        return self.system.adjoint(rows)[:, self.free]

    def normal_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """AᵀA, (1, n', n'), in this precision."""
        return self.system.normal_matrix(dtype)[:, self.free][:, :, self.free]

    def scaled(self) -> "FixedSystem":
        """Both blocks divided by their mean row norm."""
        return replace(self, system=self.system.scaled())

    def whitened(self) -> "FixedSystem":
        """Rows divided by their own error."""
        return replace(self, system=self.system.whitened())

    def whole(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        """(1, n', 1) → (1, n, 1): all unknowns, the known ones as they are or as in `others`."""
        filled = (self.fixed if others is None else others).clone()
        filled[self.free] = x.flatten()
        return filled[None, :, None]

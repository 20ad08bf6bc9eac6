"""What is known of a map besides equations: its range, and sides of outputs and entries.

Behind a ReLU nothing is negative, an image has its range, and where a ReLU is silent, the output
of the convolution is not positive. Inequalities that leave no room become equations again.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rconv.linalg.system import Rows, System


@dataclass(frozen=True)
class Bounds:
    """Inequalities of the unknown of one system.

    Parameters
    ----------
    system : System
        Its equations, N = k = 1; their `bounds` are the range of the unknown.
    sides : tuple of Tensor or None
        For each block of rows, shaped as its right-hand sides: 1 where A x ≤ rhs is known, -1
        where A x ≥ rhs is, 0 where neither is.
    """

    system: System
    sides: tuple[Tensor | None, ...]

    @property
    def one_sided(self) -> list[tuple[int, Rows, Tensor]]:
        """Blocks that have inequalities: index, rows, and which they are."""
        own = zip(self.system.blocks, self.sides, strict=True)
        each = [(i, rows, side) for i, (rows, side) in enumerate(own) if side is not None]
        return [(i, rows, side) for i, rows, side in each if bool(side.any())]

    @property
    def any(self) -> bool:
        """Whether there is any inequality."""
        return bool(np.isfinite(self.system.bounds).any()) or bool(self.one_sided)

    def along(self, start: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins at start + basis · z: h (m,) and G (m, r), in the unit of the unknown.

        Low bounds first, then high ones, then those of the rows over their norms; what is not
        bounded has no row.
        """
        low, high = self.system.bounds
        margins, slopes = [np.zeros(0)], [np.zeros((0, basis.shape[1]))]
        if np.isfinite(low):
            margins.append(start - low)
            slopes.append(basis)
        if np.isfinite(high):
            margins.append(high - start)
            slopes.append(-basis)
        for _, rows, side in self.one_sided:
            used = side != 0
            factor = (side / rows.operator.row_norms().expand_as(side))[used].cpu().numpy()
            applied = _applied(rows, used, np.c_[start, basis])
            margins.append(factor * (rows.rhs[used].cpu().numpy() - applied[:, 0]))
            slopes.append(-factor[:, None] * applied[:, 1:])
        return np.concatenate(margins), np.concatenate(slopes)

    def closed(self, active: np.ndarray) -> System:
        """The equations with those of `active` (m,) that hold with equality, in the order above."""
        n, rest = self.system.unknowns, active
        fixed = np.full(n, np.nan)
        for bound in self.system.bounds:
            if np.isfinite(bound):
                fixed[rest[:n]], rest = bound, rest[n:]
        blocks = list(self.system.blocks)
        for i, rows, side in self.one_sided:
            used, touching = side != 0, torch.zeros_like(side, dtype=torch.bool)
            own, rest = rest[: int(used.sum())], rest[int(used.sum()) :]
            touching[used] = torch.from_numpy(own).to(side.device)
            weight = torch.where(touching, 1.0, rows.weight.expand_as(touching))
            blocks[i] = replace(rows, weight=weight)
        fixed = torch.from_numpy(fixed).to(self.system.rhs)
        return replace(self.system, blocks=tuple(blocks), fixed=fixed)


def _applied(rows: Rows, used: Tensor, columns: np.ndarray) -> np.ndarray:
    """(n, k) → the used rows of each column, (s, k)."""
    x = torch.from_numpy(columns.T.copy()).to(rows.rhs)[..., None]
    return rows.operator.apply(x).reshape(len(x), *used.shape[1:])[:, used[0]].T.cpu().numpy()

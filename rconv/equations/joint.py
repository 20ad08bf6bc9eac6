"""Everything linear in one map: the rows of all convolutions that take it, and known entries."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.equations.system import StackedSystem
from rconv.linalg.equations import FREE, worth


@dataclass(frozen=True)
class JointSystem:
    """The equations of one image's map; see `rconv.linalg.equations.Equations`.

    The unknown is vec(X), (1, C·H·W, 1). The rows are those of each convolution, then those of
    the entries.

    Parameters
    ----------
    parts : tuple of StackedSystem
        One for each convolution that takes X.
    value : Tensor
        X where it is known, (C·H·W,).
    weight : Tensor
        Weight of each entry as an equation, 0 where it is not known; (C·H·W,).
    error : Tensor
        Standard deviation of `value` times `weight`, (C·H·W,).
    bounds : tuple of float
        Of X.
    """

    parts: tuple[StackedSystem, ...]
    value: Tensor
    weight: Tensor
    error: Tensor
    bounds: tuple[float, float] = FREE

    @property
    def unknowns(self) -> int:
        """n = C·H·W."""
        return len(self.value)

    @property
    def rhs(self) -> Tensor:
        """b, (1, m, 1)."""
        return self._rows([part.rhs for part in self.parts], self.weight * self.value)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of b's errors, (1, m, 1); 0 for rows that are not used."""
        return self._rows([part.deviation for part in self.parts], self.error * (self.weight > 0))

    def product(self, x: Tensor) -> Tensor:
        """A x of all rows: (1, n, 1) → (1, m, 1)."""
        return self._rows([part.product(x) for part in self.parts], self.weight * x.flatten())

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (1, m, 1) → (1, n, 1)."""
        sizes = [part.gradient.numel() + part.output.numel() for part in self.parts]
        *own, known = rows.split([*sizes, self.unknowns], dim=1)
        back = self.weight[None, :, None] * known
        for part, part_rows in zip(self.parts, own, strict=True):
            back = back + part.adjoint(part_rows)
        return back

    def normal_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """AᵀA of all rows, (1, n, n), in this precision."""
        first, *others = self.parts
        gram = first.normal_matrix(dtype)
        for part in others:
            gram += part.normal_matrix(dtype)
        gram[0].diagonal().add_(self.weight.to(dtype) ** 2)
        return gram

    def preconditioner(self) -> Callable[[Tensor], Tensor]:
        """None: rows of several convolutions have no residue classes in common."""
        return lambda x: x

    def scaled(self) -> "JointSystem":
        """All blocks divided by their mean row norm."""
        parts = tuple(part.scaled() for part in self.parts)
        return replace(self, parts=parts)._entries(1 / self._size())

    def whitened(self) -> "JointSystem":
        """Rows divided by their own error, as far as `TRUST` allows; a mean row norm of about one.

        Where the error of some rows is unknown, all blocks are divided by their size.
        """
        used = self.weight > 0
        rows = [part.least_error() for part in self.parts if part.used]
        rows += [float(self.error[used].min()) / self._size()] if used.any() else []
        least = min(rows, default=0.0)
        if least <= 0:
            return self.scaled()
        factor = worth(self.error, least * self._size()) / self._size()
        parts = tuple(part.weighed_against(least) for part in self.parts)
        return replace(self, parts=parts)._entries(factor)

    def _entries(self, factor: float | Tensor) -> "JointSystem":
        """The rows of the entries multiplied."""
        return replace(self, weight=self.weight * factor, error=self.error * factor)

    def _size(self) -> float:
        """Mean weight of the entries that are known; 1 for none."""
        used = self.weight > 0
        return float(self.weight[used].mean()) if used.any() else 1.0

    def _rows(self, parts: list[Tensor], entries: Tensor) -> Tensor:
        return torch.cat([*parts, entries[None, :, None]], dim=1)

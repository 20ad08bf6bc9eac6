"""Linear equations of one unknown: blocks of rows, stacked, weighted and restricted."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rconv.linalg.operator import Entries, Matrix, Operator, Part, select, shared, weighted
from rconv.linalg.solution import aligned

UNKNOWN = torch.zeros((), dtype=torch.float64)
"""A standard deviation of which nothing is known."""

ONE = torch.ones((), dtype=torch.float64)

FREE = (-torch.inf, torch.inf)

MAX_WEIGHT_RATIO = 1e3
"""Most that one row is weighted against another. The normal equations square it, and their
condition limit of 1e7 leaves room for no more than this beside the equations' own condition."""


@dataclass(frozen=True)
class Rows:
    """One block of equations: weight · A x = weight · rhs, up to errors.

    The right-hand side has the natural shape of the operator's rows, (N, ...), to which the others
    broadcast: `std`, the standard deviation of its errors times the weight, zero where nothing is
    known of them; and `weight`, 0 for an equation that is not observed.
    """

    operator: Operator
    rhs: Tensor
    std: Tensor = UNKNOWN
    weight: Tensor = ONE

    @cached_property
    def used(self) -> bool:
        """Whether any equation is observed."""
        return bool(self.weight.any()) and self.rhs.numel() > 0

    def scaled(self, factor: Tensor) -> "Rows":
        """The equations multiplied by a factor that broadcasts to them."""
        return replace(self, weight=self.weight * factor, std=self.std * factor)

    def apply(self, x: Tensor) -> Tensor:
        """Weighted A x: (N, n, k) → (N, m, k)."""
        if not self.used:
            return x.new_zeros(len(x), self.rhs[0].numel() // x.shape[2], x.shape[2])
        return weighted(self.operator.apply(x), self.weight).reshape(len(x), -1, x.shape[2])

    def adjoint(self, rows: Tensor) -> Tensor:
        """Weighted Aᵀ r: (N, m, k) → (N, n, k)."""
        natural = rows.reshape(-1, *self.rhs.shape[1:])
        return self.operator.adjoint(weighted(natural, self.weight))

    def flat(self, values: Tensor, columns: int) -> Tensor:
        """Values that broadcast to `rhs`, as (N, m, k)."""
        return values.expand_as(self.rhs).reshape(len(self.rhs), -1, columns)

    def mean_norm(self) -> Tensor:
        """(N, 1, ...): mean norm of the weighted rows that are used; 1 where there are none."""
        norms = (self.operator.row_norms() * self.weight).expand_as(self.rhs)
        if self.operator.columns and shared(self.weight):
            norms = norms[..., :1]
        counts = (norms > 0).flatten(1).sum(dim=1)
        mean = norms.flatten(1).sum(dim=1) / counts.clamp(min=1)
        return aligned(torch.where(mean > 0, mean, 1.0), self.rhs)

    def row_std(self) -> Tensor:
        """`std` row by row: of columns that share their weights, the root mean square."""
        if not (self.operator.columns and shared(self.weight)) or shared(self.std):
            return self.std
        return self.std.square().mean(dim=-1, keepdim=True).sqrt()

    def least_std(self) -> Tensor:
        """(N, 1, ...): the smallest error of a row that is used, per mean norm; inf for none."""
        std, used = torch.broadcast_tensors(self.row_std(), self.weight != 0)
        least = torch.where(used, std, torch.inf).reshape(*std.shape, *[1] * (std.dim() == 0))
        least = least.flatten(1).amin(dim=1) if least.dim() > 1 else least
        least = aligned(least, self.rhs)
        return least / self.mean_norm() if self.used else torch.full_like(least, torch.inf)

    def select(self, where: Tensor | list[int]) -> "Rows":
        """The equations of some of the systems."""
        std, weight = (select(field, where) for field in (self.std, self.weight))
        return Rows(self.operator.select(where), self.rhs[where], std, weight)


@dataclass(frozen=True)
class System:
    """The equations of the unknowns x, (N, n, k), of N systems that share nothing.

    A joint system of several samples is one system whose unknown holds all of them. n counts the
    `unknowns` before some are `fixed`: values (n,) that are known exactly, NaN for the others,
    where N = 1. All x lie between `bounds`.
    """

    blocks: tuple[Rows, ...]
    unknowns: int
    bounds: tuple[float, float] = FREE
    fixed: Tensor | None = None

    @staticmethod
    def dense(matrix: Tensor, rhs: Tensor, std: Tensor = UNKNOWN) -> "System":
        """Equations that are written out: A (N, m, n), or (1, m, n) for all, and b (N, m, k)."""
        return System((Rows(Matrix(matrix), rhs, std),), matrix.shape[2])

    @property
    def free(self) -> Tensor | slice:
        """Which unknowns are to be found."""
        return slice(None) if self.fixed is None else self.fixed.isnan()

    @property
    def count(self) -> int:
        """How many unknowns are to be found."""
        return self.unknowns if self.fixed is None else int(self.fixed.isnan().sum())

    @property
    def used(self) -> tuple[Rows, ...]:
        """The blocks that have any equation."""
        return tuple(block for block in self.blocks if block.used)

    @cached_property
    def rhs(self) -> Tensor:
        """Weighted b, (N, m, k), without what the fixed unknowns add to it."""
        k = self.columns
        rhs = torch.cat([b.flat(weighted(b.rhs, b.weight), k) for b in self.blocks], dim=1)
        if self.fixed is None:
            return rhs
        return rhs - self._apply(self.fixed.nan_to_num()[None, :, None])

    @property
    def columns(self) -> int:
        """k."""
        first = self.blocks[0]
        return first.rhs.shape[-1] if isinstance(first.operator, Matrix) else 1

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation of the weighted rows' errors, (N, m, k); 0 for unused rows."""
        k = self.columns
        return torch.cat([b.flat(b.std * (b.weight != 0), k) for b in self.blocks], dim=1)

    def apply(self, x: Tensor) -> Tensor:
        """A x of all rows: (N, n, k) → (N, m, k)."""
        return self._apply(x if self.fixed is None else self.whole(x, torch.zeros_like(self.fixed)))

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (N, m, k) → (N, n, k)."""
        sizes = [b.rhs[0].numel() // self.columns for b in self.blocks]
        pairs = zip(self.blocks, rows.split(sizes, dim=1), strict=True)
        parts = [block.adjoint(part) for block, part in pairs if block.used]
        back = sum(parts[1:], parts[0]) if parts else rows.new_zeros(1, self.unknowns, 1)
        return back if self.fixed is None else back[:, self.free]

    def residual(self, x: Tensor) -> Tensor:
        """b - A x, (N, m, k)."""
        return self.rhs - self.apply(x)

    def gram(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """AᵀA, (N, n, n), in this precision."""
        count = len(self.blocks[0].rhs)
        gram = self.blocks[0].rhs.new_zeros(count, self.unknowns, self.unknowns, dtype=dtype)
        for block in self.used:
            block.operator.add_gram(gram, block.weight)
        return gram if self.fixed is None else gram[:, self.free][:, :, self.free]

    def whole(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        """(1, n', 1) → (1, n, 1): all unknowns, the fixed ones as they are or as in `others`."""
        if self.fixed is None:
            return x
        filled = (self.fixed if others is None else others).clone()
        filled[self.free] = x.flatten()
        return filled[None, :, None]

    def scaled(self) -> "System":
        """All blocks divided by their mean row norm, so that none drowns the others."""
        blocks = tuple(b.scaled(1 / b.mean_norm()) if b.used else b for b in self.blocks)
        return replace(self, blocks=blocks)

    def whitened(self) -> "System":
        """Rows divided by their errors, up to `MAX_WEIGHT_RATIO`; a mean row norm of about one.

        Where the error of some block is unknown, all blocks are divided by their size instead.
        """
        least = self.least_std()
        if not (least > 0).all():
            return self.scaled()
        blocks = []
        for block in self.blocks:
            if block.used:
                size = block.mean_norm()
                weights = row_weights(block.row_std() / size, aligned(least, block.rhs))
                block = block.scaled(weights / size)
            blocks.append(block)
        return replace(self, blocks=tuple(blocks))

    def weighted_against(self, least: float) -> "System":
        """Rows divided by their errors in units of `least`, whatever the size of their norms."""
        rows = (b.scaled(row_weights(b.row_std(), least)) for b in self.blocks)
        return replace(self, blocks=tuple(rows))

    def least_std(self) -> Tensor:
        """(N,): the smallest error of a row that is used, per mean norm of its block's rows."""
        least = [block.least_std().flatten() for block in self.used]
        return torch.stack(torch.broadcast_tensors(*least)).amin(dim=0) if least else UNKNOWN[None]

    def select(self, where: Tensor | list[int]) -> "System":
        """Some of the systems."""
        return replace(self, blocks=tuple(block.select(where) for block in self.blocks))

    @property
    def couples(self) -> bool:
        """Whether some row meets several channels, so that the system does not fall into parts."""
        return any(block.operator.couples for block in self.used)

    def parts(self) -> list[tuple["System", Tensor]]:
        """Independent systems of the same N, each with the index (p, k) of its unknowns.

        Of rows that meet one channel each. Known entries, and weights that differ from channel to
        channel, are left out: see `rconv.linalg.columns`.
        """
        blocks = [b for b in self.used if not isinstance(b.operator, Entries)]
        return [_joined(blocks, parts) for parts in self._parts()]

    @property
    def column_size(self) -> int:
        """Most unknowns that one column of a part has."""
        return max((len(part[0].index) for part in self._parts()), default=0)

    def _parts(self) -> list[tuple[Part, ...]]:
        """The parts of every block of rows that meet one channel each."""
        operators = [b.operator for b in self.used if not b.operator.couples]
        operators = [operator for operator in operators if not isinstance(operator, Entries)]
        return list(zip(*(o.parts(alone=len(operators) == 1) for o in operators), strict=True))

    def _apply(self, x: Tensor) -> Tensor:
        return torch.cat([block.apply(x) for block in self.blocks], dim=1)


def _joined(blocks: list[Rows], parts: tuple[Part, ...]) -> tuple[System, Tensor]:
    """The same part of several blocks, as one system."""
    rows = []
    for block, part in zip(blocks, parts, strict=True):
        std, weight = (
            v if v.dim() == 0 else part.take(v.expand(*block.rhs.shape[:-1], v.shape[-1]))
            for v in (block.std, block.weight)
        )
        rows.append(Rows(Matrix(part.make()), part.take(block.rhs), std, weight))
    return System(tuple(rows), len(parts[0].index)), parts[0].index


def row_weights(std: Tensor, least: float | Tensor) -> Tensor:
    """Weights of rows: 1 for the least error, no less than 1 / `MAX_WEIGHT_RATIO` for others.

    `std` is the error of each row, any shape; `least`, that of the best one, broadcasts to it.
    Where it is 0, and so unknown, the weights are 1.
    """
    least = torch.as_tensor(least, dtype=std.dtype, device=std.device)
    weights = torch.where(least > 0, least / std.clamp(min=1e-300), 1.0)
    return weights.clamp(min=1 / MAX_WEIGHT_RATIO, max=1.0)

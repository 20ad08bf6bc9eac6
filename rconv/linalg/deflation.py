"""A system that rows of single channels determine but for a few directions.

These rows fall into small parts. Each is solved where it is strong; rows that couple the channels
are needed for the remaining weak directions alone, which are few where the joint system is large.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from rconv.linalg.columns import columns_of
from rconv.linalg.dense import solve_dense
from rconv.linalg.operator import Entries, shared
from rconv.linalg.solution import Solution, root_mean_square
from rconv.linalg.system import Rows, System

STRONG = 0.03
"""Singular values above this share of the largest are strong: noise grows by 30 at most, and the
normal equations keep 13 digits."""

CORRECTIONS = 2

CHUNK = 256
"""Directions that the coupling rows are applied to at a time."""

MOST = 3_000
"""Weak directions that are solved for, at most: beyond, one system of all unknowns costs less."""


@dataclass(frozen=True)
class _Strong:
    """A system's solution in the strong directions of its parts, and the weak directions.

    `value` and `error`, (n,), are without any weak direction, the error as a standard deviation. Of
    each weak direction, `places` and `directions`, (r, p), are the unknowns that it moves, and how,
    of norm 1; places beyond a shorter direction are repeated with the entry 0. `sizes` and `rhs`,
    (r,), are what the parts say of the directions: size · z = rhs. `condition` is the ratio of the
    largest singular value to the smallest strong one.
    """

    value: Tensor
    error: Tensor
    places: Tensor
    directions: Tensor
    sizes: Tensor
    rhs: Tensor
    condition: float

    def spread(self, cut: slice, unknowns: int) -> Tensor:
        """Some of the weak directions as unknowns of the whole system, (r', n, 1)."""
        x = self.directions.new_zeros(len(self.directions[cut]), unknowns)
        return x.scatter_add_(1, self.places[cut], self.directions[cut])[..., None]


def deflated(system: System, tolerance: float) -> Solution | None:
    """Solve a system, N = k = 1, by its parts, and for their weak directions by all rows.

    The system is weighted by its errors; the tolerance is the relative noise of the equations. None
    where there are no weak directions, or too many.
    """
    separate = tuple(b for b in system.used if not b.operator.couples)
    coupled = tuple(b for b in system.used if b.operator.couples)
    strong = solve_strong(replace(system, blocks=separate))
    if strong is None or not 0 < len(strong.sizes) <= MOST:
        return None
    least = float(torch.where(system.std > 0, system.std, torch.inf).min())
    weak = solve_dense(_weak_rows(coupled, strong, least if least < torch.inf else 0.0), tolerance)
    z = weak.value[0, :, 0]
    change = (strong.directions * z[:, None]).flatten()
    value = strong.value.index_add(0, strong.places.flatten(), change)
    spread = torch.hypot(strong.error.norm(), weak.error * z.norm())
    return replace(
        weak,
        value=value[None, :, None],
        rank=weak.rank + len(value) - len(z),
        condition=weak.condition.maximum(weak.condition.new_tensor(strong.condition)),
        error=spread / value.norm().clamp(min=1e-300),
        method=(f"parts, then {weak.method[0]}",),
    )


def _weak_rows(coupled: tuple[Rows, ...], strong: _Strong, least: float) -> System:
    """The equations of the weak directions: those of the parts, and the coupling ones."""
    matrices, rhs = [torch.diag(strong.sizes)], [strong.rhs]
    errors = [torch.full_like(strong.rhs, least)]
    unknowns = len(strong.value)
    for block in coupled:
        used = (block.weight != 0).expand_as(block.rhs)[0]
        factor = block.weight.expand_as(block.rhs)[0][used]
        cuts = [slice(i, i + CHUNK) for i in range(0, len(strong.sizes), CHUNK)]
        applied = (block.operator.apply(strong.spread(cut, unknowns))[:, used] for cut in cuts)
        matrices.append((torch.cat(list(applied)) * factor).T)
        base = block.operator.apply(strong.value[None, :, None])[0][used]
        rhs.append(factor * (block.rhs[0][used] - base))
        # Errors of the strong directions are errors of these rows.
        leak = block.operator.variance(strong.error.square()[None, :, None])[0][used].sqrt()
        errors.append(torch.hypot(block.std.expand_as(block.rhs)[0][used], leak * factor))
    dense = System.dense(
        torch.cat(matrices)[None], torch.cat(rhs)[None, :, None], torch.cat(errors)[None, :, None]
    )
    return dense.weighted_against(least)


def solve_strong(system: System) -> _Strong | None:
    """Solve the parts of a system, N = k = 1, of rows that meet one channel each.

    In their strong directions; None where there are no rows but known entries.
    """
    entries = [b for b in system.used if isinstance(b.operator, Entries)]
    parts = []
    for part, index in system.parts():
        alike = not entries and all(shared(b.weight) for b in part.blocks)
        columns = torch.arange(index.shape[1])
        separate = columns_of(part, entries, index, columns)
        gram = separate.select([0]).gram() if alike else separate.gram()
        parts.append((separate, index.mT.to(gram.device), *torch.linalg.eigh(gram)))
    if not parts:
        return None
    largest = max(float(values.max()) for _, _, values, _ in parts)
    found = [_strong_part(*part, STRONG**2 * largest) for part in parts]
    value = system.rhs.new_zeros(system.unknowns)
    error = torch.zeros_like(value)
    for (_, index, _, _), part in zip(parts, found, strict=True):
        value[index], error[index] = part.value, part.error
    width = max(part.directions.shape[1] for part in found)
    places, directions = (
        torch.cat([pad(part, (0, width - part.shape[1])) for part in several])
        for several in zip(*((part.places, part.directions) for part in found), strict=True)
    )
    sizes, rhs = (torch.cat([getattr(part, name) for part in found]) for name in ("sizes", "rhs"))
    least = min(part.condition for part in found)
    return _Strong(value, error, places, directions, sizes, rhs, (largest / least) ** 0.5)


def _strong_part(
    system: System, index: Tensor, values: Tensor, vectors: Tensor, floor: float
) -> _Strong:
    """One part's columns; its condition is the smallest strong eigenvalue."""
    values, vectors = (array.expand(len(index), *array.shape[1:]) for array in (values, vectors))
    # Below its rounding an eigenvalue is zero: the equation of its size would be of rounding alone.
    rounding = values.shape[1] * torch.finfo(values.dtype).eps * values.max()
    values = torch.where(values > rounding, values, 0.0)
    strong = values > floor
    inverse = torch.where(strong, 1 / torch.where(strong, values, 1.0), 0.0)[..., None]
    x = values.new_zeros(*values.shape, 1)
    for _ in range(1 + CORRECTIONS):
        x = x + vectors @ (inverse * (vectors.mT @ system.adjoint(system.residual(x))))
    spread = root_mean_square(system.std)
    error = spread[:, None] * (vectors.square() @ inverse)[..., 0].sqrt()
    known = (vectors.mT @ system.adjoint(system.rhs))[..., 0]
    column, which = (~strong).nonzero(as_tuple=True)
    sizes = values[column, which].sqrt()
    rhs = torch.where(sizes > 0, known[column, which] / torch.where(sizes > 0, sizes, 1.0), 0.0)
    least = float(values[strong].min()) if strong.any() else float(values.max().clamp(min=1e-300))
    directions = vectors.mT[column, which]
    return _Strong(x[..., 0], error, index[column], directions, sizes, rhs, least)

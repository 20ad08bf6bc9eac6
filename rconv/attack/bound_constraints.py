"""Maps whose equations are short of rank, closed by their range and by silent outputs.

Behind a ReLU nothing is negative, an image has its range, and where a ReLU is silent, the output
of the convolution is not positive. Inequalities that leave no room become equations again.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rconv.attack.total_variation import fill
from rconv.attack.verdict import ACCUMULATED, ARITHMETIC
from rconv.linalg.columns import columns_of, least_squares
from rconv.linalg.dense import null_space, solve_dense
from rconv.linalg.inequalities import (
    FEW,
    PROGRAM,
    Forced,
    forced,
    forced_at,
    moving,
    nonnegative,
    tightened_bounds,
)
from rconv.linalg.operator import Entries
from rconv.linalg.solution import Solution, root_mean_square
from rconv.linalg.system import Rows, System

SURE = 6.0
"""Standard deviations up to which a margin counts as none."""

WEAK = 1e-5
"""Singular values up to this share of the largest count as zero for the inequalities: normal
equations separate their directions from the open ones only to eps over its square, 2e-6. The
final solution uses what the equations say of them."""

EIGEN = 1_500
"""Unknowns up to which an eigendecomposition, which finds these directions, takes a second."""

COLUMNS = 256
"""Of the rows that are written out at once, with those that are not observed."""

ROUNDS = 8
"""Times that violated inequalities become equations; two or three are what noise needs."""


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


@dataclass(frozen=True)
class Completed:
    """One system's answer to equations that are short of rank.

    Parameters
    ----------
    solution : Solution
        Value (1, n); its rank is that of the equations alone.
    closed : int
        Directions that the inequalities close.
    guess : Tensor
        (n,): what was chosen in the directions that are open all the same, by a prior.
    low, high : Tensor
        (n,): the interval of each entry that equations and inequalities leave.
    """

    solution: Solution
    closed: int
    guess: Tensor
    low: Tensor
    high: Tensor


def joint(solved: Solution) -> Solution:
    """The solutions of a client's samples as one, value (1, B·n)."""
    sizes = solved.value.norm(dim=1)
    size = sizes.norm().clamp(min=1e-300)
    error = (solved.error * sizes).norm() / size
    gap = int(solved.value.shape[1] - solved.rank.min())
    value = solved.value.reshape(1, -1)
    rank = torch.full_like(solved.rank[:1], max(value.shape[1] - gap, 0))
    return replace(solved.select([0]), value=value, error=error[None], rank=rank)


def close_parts(
    system: System, solution: Solution, relative_std: float, *, exact: bool, scale: float
) -> Completed:
    """A system, N = 1, that falls into channels and residue classes, each closed alone.

    As `close`, but directions that stay open are left as they are: to choose in each part would
    take longer than all else.
    """
    value = solution.value[0]
    low, high, error = (torch.full_like(value, end) for end in (*system.bounds, 0.0))
    entries = [rows for rows in system.used if isinstance(rows.operator, Entries)]
    closed, value = 0, value.clone()
    for part, index in system.parts():
        columns = columns_of(part, entries, index, torch.arange(index.shape[1]))
        ranks = least_squares(columns, relative_std).rank
        for c in range(index.shape[1]):
            place = index[:, c].to(value.device)
            own = replace(columns.select([c]), bounds=system.bounds)
            if int(ranks[c]) == len(place):
                low[place] = high[place] = value[place]
                continue
            mine = replace(solution, value=value[place][None], rank=ranks[c][None])
            none = (None,) * len(own.blocks)
            done = close(Bounds(own, none), mine, relative_std, exact=exact, scale=scale)
            closed += done.closed
            value[place], low[place], high[place] = done.solution.value[0], done.low, done.high
            error[place] = done.solution.error[0] * root_mean_square(done.solution.value)[0]
    total = error.norm() / value.norm().clamp(min=1e-300)
    whole = replace(solution, value=value[None], error=total[None].maximum(solution.error))
    return Completed(whole, closed, torch.zeros_like(value), low, high)


def close(
    bounds: Bounds,
    solution: Solution,
    relative_std: float,
    *,
    prior: bool = False,
    image: tuple[int, int, int, int] | None = None,
    exact: bool = False,
    scale: float = 0.0,
) -> Completed:
    """What the inequalities leave of one system's solutions.

    Where they leave directions open, the values that are inside the range are many. For an image
    the prior chooses one of little total variation; above it, non-negative least squares one with
    many entries at the low end of the range.

    Parameters
    ----------
    bounds : Bounds
        The equations and inequalities.
    solution : Solution
        Of minimum norm, value (1, n), its rank short of n.
    relative_std : float
        Relative noise of the equations.
    prior : bool
        Whether a choice is made in the directions that stay open.
    image : tuple of int or None
        (B, C, H, W) where the map is an image, so that total variation makes the choice.
    exact : bool
        Whether the intervals that are left are exact.
    scale : float
        Size that margins are measured by where the solution is zero.

    Returns
    -------
    Completed
        With the given solution where the inequalities close nothing or contradict the equations.
    """
    system = bounds.system
    value, scale = solution.value[0], float(root_mean_square(solution.value)[0]) or scale
    ends = [torch.full_like(value, end) for end in system.bounds]
    as_is = Completed(solution, 0, torch.zeros_like(value), *ends)
    if not 0 < scale < torch.inf or not bounds.any:
        return as_is
    gram = system.whitened().gram()[0].cpu().numpy()
    weak = WEAK if float(solution.condition[0]) > 1 / WEAK and len(gram) <= EIGEN else 0.0
    basis = null_space(gram, weak)
    margins, slopes = bounds.along(value.cpu().numpy(), basis)
    noise = SURE * float(solution.error[0])
    few = basis.shape[1] <= FEW
    lowest = None if few else _lowest(system)
    found = forced(margins / scale, slopes, noise) if few else None
    if lowest is not None:
        found = forced_at(bounds.along(lowest, basis)[0] / scale, slopes, noise)
    if found is not None and found.active.any():
        done = _closed(bounds, found, solution, relative_std)
        if done is None:
            return as_is
        as_is, basis = done
    as_is = _left(bounds, basis, as_is, noise, scale, exact)
    if not basis.shape[1] or not prior:
        return as_is
    if few and not image:
        lowest = _lowest(system)
    return _chosen(bounds, basis, as_is, lowest, image)


def _lowest(system: System) -> np.ndarray | None:
    """One of the family's points with many entries at the low end of the range, (n,).

    From the rows themselves: the active set stops at a sparse point that fits them up to rounding,
    and walks past it where normal equations round more.
    """
    low, rows = system.bounds[0], system.scaled()
    if not np.isfinite(low):
        return None
    used = torch.cat([b.flat(b.weight, 1) for b in rows.blocks], dim=1)[0, :, 0] != 0
    parts = torch.eye(system.unknowns).to(rows.rhs)[:, :, None].split(COLUMNS)
    matrix = torch.cat([rows.apply(part)[:, used, 0] for part in parts]).T
    rhs = rows.rhs[0, used, 0] - low * matrix.sum(dim=1)
    point = nonnegative(matrix.cpu().numpy(), rhs.cpu().numpy())
    return None if point is None else point + low


def _left(
    bounds: Bounds,
    basis: np.ndarray,
    given: Completed,
    noise: float,
    scale: float,
    exact: bool,
) -> Completed:
    """The same with its intervals: exact ones if asked for, else the range of what moves."""
    value, ends = given.solution.value[0], bounds.system.bounds
    point = value.cpu().numpy()
    moved = torch.from_numpy(moving(basis)).to(value.device)
    low, high = (torch.where(moved, end, value) for end in ends)
    if exact and basis.shape[1]:
        margins, slopes = bounds.along(point, basis)
        scaled = ends[0] / scale, ends[1] / scale
        found = tightened_bounds(point / scale, basis, margins / scale + noise, slopes, scaled)
        if found is not None:
            low, high = (torch.from_numpy(end * scale).to(value) for end in found)
    return replace(given, low=low, high=high)


def _closed(
    bounds: Bounds, found: Forced, solution: Solution, relative_std: float
) -> tuple[Completed, np.ndarray] | None:
    """The equations solved again with what is forced, and the directions that are left.

    None where the one answer that is left does not keep to its bounds.
    """
    n = solution.value.shape[1]
    closed = bounds.closed(found.active).whitened()
    answer = solve_dense(closed, relative_std)
    whole = closed.whole(answer.value)[..., 0]
    size = float(root_mean_square(whole)[0])
    error = float(answer.error[0] * root_mean_square(answer.value)[0])
    error = max(error, float(solution.error[0]) * size)
    left = closed.count - int(answer.rank[0])
    basis = np.zeros((n, 0))
    if left:
        own = null_space(closed.gram()[0].cpu().numpy())
        basis = np.zeros((n, own.shape[1]))
        basis[closed.free.cpu().numpy()] = own
    elif _violated(bounds, whole, error).any():
        kept = _kept(bounds, found.active, whole, error, relative_std)
        if kept is None:
            return None
        answer, whole = kept
    relative = torch.full_like(solution.error, min(error / max(size, 1e-300), 1.0))
    answer = replace(answer, value=whole, rank=solution.rank, error=relative)
    gained = max(n - int(solution.rank[0]) - left, 0)
    guess = torch.zeros_like(whole[0])
    return Completed(answer, gained, guess, whole[0], whole[0]), basis


def _violated(bounds: Bounds, whole: Tensor, error: float) -> np.ndarray:
    """(m,), bool: inequalities that a value (1, n) violates by more than an error of this size."""
    size = float(root_mean_square(whole)[0])
    point = whole[0].cpu().numpy()
    margins, _ = bounds.along(point, np.zeros((len(point), 0)))
    return margins < -SURE * error - PROGRAM * size


def _kept(
    bounds: Bounds, active: np.ndarray, whole: Tensor, error: float, relative_std: float
) -> tuple[Solution, Tensor] | None:
    """The nearest answer that keeps to its bounds, if the equations allow it.

    The expected error is that of an average entry, and the error of a few weak directions can be
    ten times as large. So a violated inequality is no contradiction yet: least squares with all
    violated inequalities as equations, until none is left, is one if its residual exceeds what
    noise leaves.

    The inequalities `active` (m,) hold with equality for certain and give the answer `whole` (1,
    n), whose expected error is `error`. Returns the answer for the unknowns that are left, and all
    unknowns; None where equations and inequalities contradict each other.
    """
    for _ in range(ROUNDS):
        beyond = _violated(bounds, whole, 0.0) & ~active
        active = active | beyond
        rows = bounds.closed(active).whitened()
        answer = solve_dense(rows, relative_std)
        whole = rows.whole(answer.value)[..., 0]
        if not _violated(bounds, whole, error).any():
            break
    else:
        return None
    allowed = ACCUMULATED * rows.std.norm() + ARITHMETIC * rows.rhs.norm()
    if rows.count > int(answer.rank[0]) or rows.residual(answer.value).norm() > allowed:
        return None
    return answer, whole


def _chosen(
    bounds: Bounds,
    basis: np.ndarray,
    given: Completed,
    lowest: np.ndarray | None,
    image: tuple[int, int, int, int] | None,
) -> Completed:
    """The same with a choice in the open directions, the columns of `basis`."""
    value, error = given.solution.value[0], given.solution.error
    if image:
        filled, std = fill(value.reshape(image), basis, bounds.system.bounds)
        guess = filled.flatten() - value
        error = torch.hypot(error, std / root_mean_square(filled[None])).clamp(max=1.0)
    elif lowest is None:
        return given
    else:
        guess = torch.from_numpy(basis @ (basis.T @ (lowest - value.cpu().numpy()))).to(value)
    chosen = replace(given.solution, value=(value + guess)[None], error=error)
    return replace(given, solution=chosen, guess=guess)


def _applied(rows: Rows, used: Tensor, columns: np.ndarray) -> np.ndarray:
    """(n, k) → the used rows of each column, (s, k)."""
    x = torch.from_numpy(columns.T.copy()).to(rows.rhs)[..., None]
    return rows.operator.apply(x).reshape(len(x), *used.shape[1:])[:, used[0]].T.cpu().numpy()

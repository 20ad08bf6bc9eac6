"""A layer whose equations are short of rank, closed by what is known of its input's range."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rconv.attack.plan import LayerPlan
from rconv.attack.prior import fill
from rconv.attack.solve import Known, stacked_system
from rconv.attack.verdict import ACCUMULATED, ARITHMETIC
from rconv.equations.batch import BatchSystem
from rconv.equations.bounds import Bounds
from rconv.equations.system import StackedSystem
from rconv.linalg.cholesky import null_space
from rconv.linalg.dense import solve_stacked
from rconv.linalg.equations import FREE, residual
from rconv.linalg.extremes import extremes
from rconv.linalg.margin import FEW, PROGRAM
from rconv.linalg.signs import Forced, forced, forced_at, moving, nonnegative
from rconv.linalg.solution import Solution, root_mean_square

SURE = 6.0
"""Standard deviations up to which a margin counts as none."""

WEAK = 1e-5
"""Singular values up to this share of the largest count as zero for the inequalities: normal
equations separate their directions from the open ones only to eps over its square, 2e-6. The
final solution uses what the equations say of them."""

EIGEN = 1_500
"""Unknowns up to which an eigendecomposition, which finds these directions, takes a second."""

ROUNDS = 8
"""Times that violated inequalities become equations; two or three are what noise needs."""


@dataclass(frozen=True)
class Completed:
    """One image's answer to equations that are short of rank.

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


def by_signs(plan: LayerPlan, known: Known, solution: Solution, *, scale: float = 0.0) -> Completed:
    """What the range of the input and silent outputs leave of one image's solutions.

    Where they leave directions open, the values that are inside the range are many. For an image
    the prior chooses one of little total variation; above it, non-negative least squares one with
    many entries at the low end of the range.

    Parameters
    ----------
    plan : LayerPlan
        Knows the range of the input, whether to choose, and whether intervals are exact.
    known : Known
        Of one image.
    solution : Solution
        Of minimum norm, value (1, n), its rank short of n.
    scale : float
        Size that margins are measured by where the solution is zero.

    Returns
    -------
    Completed
        With the given solution where the inequalities close nothing or contradict the equations.
    """
    system, silent = stacked_system(plan, known), known.passed.weight[0] == 0
    return close(plan, system, silent, solution, float(known.precision[0]), scale=scale)


def close(
    plan: LayerPlan,
    system: StackedSystem | BatchSystem,
    silent: Tensor,
    solution: Solution,
    precision: float,
    *,
    scale: float = 0.0,
) -> Completed:
    """`by_signs` for the equations of an image, or of a batch.

    Parameters
    ----------
    plan, solution, scale
        As `by_signs` takes them.
    system : StackedSystem or BatchSystem
        The equations.
    silent : Tensor
        Shaped as the system's output, bool: where no output is known.
    precision : float
        Relative noise of the equations.
    """
    value, scale = solution.value[0], float(root_mean_square(solution.value)[0]) or scale
    silent = silent & plan.stage.activation.flat & (plan.stage.row_norms() > 0)
    ends = [torch.full_like(value, end) for end in plan.bounds]
    as_is = Completed(solution, 0, torch.zeros_like(value), *ends)
    if not 0 < scale < torch.inf or (plan.bounds == FREE and not silent.any()):
        return as_is
    bounds, gram = Bounds(system, silent), system.whitened().normal_matrix()[0].cpu().numpy()
    weak = WEAK if float(solution.condition[0]) > 1 / WEAK and len(gram) <= EIGEN else 0.0
    basis = null_space(gram, weak)
    margins, slopes = bounds.along(value.cpu().numpy(), basis)
    noise = SURE * float(solution.error[0])
    few = basis.shape[1] <= FEW
    lowest = None if few else _lowest(plan, gram, value)
    found = forced(margins / scale, slopes, noise) if few else None
    if lowest is not None:
        found = forced_at(bounds.along(lowest, basis)[0] / scale, slopes, noise)
    if found is not None and found.active.any():
        done = _closed(bounds, found, solution, precision)
        if done is None:
            return as_is
        as_is, basis = done
    as_is = _left(plan, bounds, basis, as_is, noise, scale)
    if not basis.shape[1] or not plan.prior:
        return as_is
    if few and not plan.first:
        lowest = _lowest(plan, gram, value)
    return _chosen(plan, basis, as_is, lowest)


def _lowest(plan: LayerPlan, gram: np.ndarray, value: Tensor) -> np.ndarray | None:
    """One of the family's points with many entries at the low end of the range, (n,)."""
    low = plan.bounds[0]
    point = nonnegative(gram, value.cpu().numpy() - low) if np.isfinite(low) else None
    return None if point is None else point + low


def _left(
    plan: LayerPlan,
    bounds: Bounds,
    basis: np.ndarray,
    given: Completed,
    noise: float,
    scale: float,
) -> Completed:
    """The same with its intervals: exact ones if asked for, else the range of what moves."""
    value = given.solution.value[0]
    point = value.cpu().numpy()
    moved = torch.from_numpy(moving(basis)).to(value.device)
    low, high = (torch.where(moved, end, value) for end in plan.bounds)
    if plan.exact and basis.shape[1]:
        margins, slopes = bounds.along(point, basis)
        ends = plan.bounds[0] / scale, plan.bounds[1] / scale
        found = extremes(point / scale, basis, margins / scale + noise, slopes, ends)
        if found is not None:
            low, high = (torch.from_numpy(end * scale).to(value) for end in found)
    return replace(given, low=low, high=high)


def _closed(
    bounds: Bounds, found: Forced, solution: Solution, precision: float
) -> tuple[Completed, np.ndarray] | None:
    """The equations solved again with what is forced, and the directions that are left.

    None where the one answer that is left does not keep to its bounds.
    """
    n = solution.value.shape[1]
    closed = bounds.closed(found.active)
    answer = solve_stacked(closed, precision, weigh="noise")
    whole = closed.whole(answer.value)[..., 0]
    size = float(root_mean_square(whole)[0])
    error = float(answer.error[0] * root_mean_square(answer.value)[0])
    error = max(error, float(solution.error[0]) * size)
    left = closed.unknowns - int(answer.rank[0])
    basis = np.zeros((n, 0))
    if left:
        own = null_space(closed.whitened().normal_matrix()[0].cpu().numpy())
        basis = np.zeros((n, own.shape[1]))
        basis[closed.free.cpu().numpy()] = own
    elif _violated(bounds, whole, error).any():
        kept = _kept(bounds, found.active, whole, error, precision)
        if kept is None:
            return None
        answer, whole = kept
    told = torch.full_like(solution.error, min(error / max(size, 1e-300), 1.0))
    answer = replace(answer, value=whole, rank=solution.rank, error=told)
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
    bounds: Bounds, active: np.ndarray, whole: Tensor, error: float, precision: float
) -> tuple[Solution, Tensor] | None:
    """The nearest answer that keeps to its bounds, if the equations allow it.

    The expected error is that of an average entry, and the error of a few weak directions can be
    ten times as large. So a violated inequality is no contradiction yet: least squares with all
    violated inequalities as equations, until none is left, is one if its residual exceeds what
    noise leaves.

    Parameters
    ----------
    bounds : Bounds
        Equations and inequalities.
    active : np.ndarray
        (m,), bool: the inequalities that hold with equality for certain.
    whole : Tensor
        (1, n), the answer that these give.
    error : float
        Its expected error.
    precision : float
        Relative noise of the equations.

    Returns
    -------
    answer : Solution
        Of the unknowns that are left.
    whole : Tensor
        (1, n), all unknowns.
    None
        Where equations and inequalities contradict each other.
    """
    for _ in range(ROUNDS):
        beyond = _violated(bounds, whole, 0.0) & ~active
        active = active | beyond
        closed = bounds.closed(active)
        answer = solve_stacked(closed, precision, weigh="noise")
        whole = closed.whole(answer.value)[..., 0]
        if not _violated(bounds, whole, error).any():
            break
    else:
        return None
    rows = closed.whitened()
    noise = rows.deviation.expand_as(rows.rhs).norm()
    allowed = ACCUMULATED * noise + ARITHMETIC * rows.rhs.norm()
    if closed.unknowns > int(answer.rank[0]) or residual(rows, answer.value).norm() > allowed:
        return None
    return answer, whole


def _chosen(
    plan: LayerPlan, basis: np.ndarray, given: Completed, lowest: np.ndarray | None
) -> Completed:
    """The same with a choice in the open directions, the columns of `basis`."""
    value, error = given.solution.value[0], given.solution.error
    if plan.first:
        image, doubt = fill(value.reshape(plan.stage.geometry.input), basis, plan.bounds)
        guess = image.flatten() - value
        error = torch.hypot(error, doubt / root_mean_square(image[None])).clamp(max=1.0)
    elif lowest is None:
        return given
    else:
        guess = torch.from_numpy(basis @ (basis.T @ (lowest - value.cpu().numpy()))).to(value)
    chosen = replace(given.solution, value=(value + guess)[None], error=error)
    return replace(given, solution=chosen, guess=guess)

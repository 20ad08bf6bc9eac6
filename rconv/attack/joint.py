"""A map that several convolutions take, or that what lies above tells in part.

Its equations are the union of theirs. Gradient constraints and known entries fall apart into the
channels, which are solved at once; where these do not suffice, weight constraints join them in one
system of all channels.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from rconv.attack.channels import best_noise, shared_rows
from rconv.attack.large import CLASS
from rconv.attack.layer import is_better, is_unsure, solve_layer
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.attack.signal import Told
from rconv.attack.solve import Known, at_least, stacked_system
from rconv.attack.weak import with_weight_rows
from rconv.equations.joint import JointSystem
from rconv.linalg.dense import solve_stacked
from rconv.linalg.equations import DenseRows
from rconv.linalg.iterative import solve_iterative
from rconv.linalg.normal import independent, least_squares
from rconv.linalg.shared import SharedRows
from rconv.linalg.solution import Solution

MOST = 2**25
"""Entries of the normal matrices that are made at a time."""


def solve_map(
    plans: Sequence[LayerPlan], known: Sequence[Known], told: Told | None, *, frugal: bool = False
) -> tuple[Solution, LayerReport]:
    """`solve_joint`, or `solve_layer` where one convolution is all that tells the map."""
    if told is None and len(plans) == 1:
        return solve_layer(plans[0], known[0], frugal=frugal)
    return solve_joint(plans, known, told, frugal=frugal)


def solve_joint(
    plans: Sequence[LayerPlan], known: Sequence[Known], told: Told | None, *, frugal: bool = False
) -> tuple[Solution, LayerReport]:
    """Solve for a map from everything that is linear in it.

    Parameters
    ----------
    plans : sequence of LayerPlan
        Of the convolutions that take it.
    known : sequence of Known
        What is known of them, each for N images.
    told : Told or None
        What is known of the map itself.
    frugal : bool
        Where `auto` may choose, keep what was tried first.

    Returns
    -------
    Solution
        The map, value (N, C·H·W), and its expected error.
    LayerReport
        How well it is determined; its name is that of all its convolutions.
    """
    apart = all(plan.kind in ("auto", "gradient") for plan in plans)
    apart &= plans[0].stage.geometry.pixels <= CLASS
    parts, kinds = [], []
    for i in range(len(known[0].gradient)):
        own = [each.select([i]) for each in known]
        mine = None if told is None else told.select([i])
        solved, kind = _by_channel(own, mine) if apart else _together(plans, own, mine), "gradient"
        if not apart:
            kind = "hybrid"
        elif not frugal and _more_may_help(plans, own, solved):
            other = with_weight_rows(plans, own, mine) if plans[0].affordable else None
            other = other or _together(plans, own, mine)
            if is_better(other, solved, 0):
                solved, kind = other, "hybrid"
        parts.append(solved)
        kinds.append(kind)
    solved = Solution.concatenate(parts)
    return solved, _report(plans, known, told, solved, kinds)


def _more_may_help(plans: Sequence[LayerPlan], known: Sequence[Known], solved: Solution) -> bool:
    """Whether one image's answer lacks rank or amplifies noise, and there are further rows."""
    if any(plan.kind != "auto" for plan in plans):
        return False
    rows = any(bool((own.passed.weight > 0).any()) for own in known)
    noise = torch.stack([own.noise for own in known]).amin(dim=0)
    return rows and bool(is_unsure(solved, plans[0].stage.geometry.unknowns, noise)[0])


def _by_channel(known: Sequence[Known], told: Told | None) -> Solution:
    """One image's gradient constraints and known entries, every channel for itself."""
    rows = shared_rows(known, told)
    precision = torch.stack([own.precision for own in known]).amax()
    if told is None:
        matrix, rhs, deviation = rows.matrix[None], rows.rhs[..., 0].T[None], rows.deviation[:1]
        cut = slice(0, matrix.shape[1])
        solution = least_squares(DenseRows(matrix, rhs[:, cut], deviation[:, cut]), precision)
        channels = rhs.shape[2]
        solution = replace(solution, value=solution.value.mT, rank=solution.rank * channels)
    else:
        step = max(1, MOST // rows.unknowns**2)
        parts = []
        for first in range(0, len(rows.rhs), step):
            cut = slice(first, first + step)
            own = rows.rhs[cut], rows.deviation[cut]
            each = SharedRows(rows.matrix, rows.diagonal[cut], *own)
            parts += least_squares(each, precision).split()
        solution = independent(parts, [own.flatten().norm()[None] for own in rows.rhs])
    return at_least(replace(solution, value=solution.value.flatten(1)), best_noise(known, told))


def joint_system(
    plans: Sequence[LayerPlan], known: Sequence[Known], told: Told | None
) -> JointSystem:
    """One image's equations of all kinds that the plans allow, as one system."""
    parts = []
    for plan, own in zip(plans, known, strict=True):
        system = stacked_system(plan, own, gradients=plan.kind != "weight")
        parts.append(system.weighted(1.0, 0.0) if plan.kind == "gradient" else system)
    n = parts[0].unknowns
    entries = [torch.zeros(n), torch.zeros(n), torch.ones(n)]
    if told is not None:
        error = told.error[0][:, None, None].expand_as(told.value[0])
        entries = [told.value[0].flatten(), told.weight[0].flatten(), error.flatten()]
    entries = [part.to(parts[0].output) for part in entries]
    return JointSystem(tuple(parts), *entries, plans[0].bounds)


def _together(plans: Sequence[LayerPlan], known: Sequence[Known], told: Told | None) -> Solution:
    """Its solution."""
    precision = float(torch.stack([own.precision for own in known]).amax())
    system = joint_system(plans, known, told)
    if plans[0].affordable:
        solution = solve_stacked(system, precision, weigh="noise")
    else:
        solution = solve_iterative(system.whitened())
    return at_least(replace(solution, value=solution.value.flatten(1)), best_noise(known, told))


def _report(
    plans: Sequence[LayerPlan],
    known: Sequence[Known],
    told: Told | None,
    solution: Solution,
    kinds: list[str],
) -> LayerReport:
    stages = [plan.stage for plan in plans]
    hybrid = torch.tensor([kind == "hybrid" for kind in kinds], device=solution.rank.device)
    weight_rows = sum((own.passed.weight > 0).flatten(1).sum(dim=1) for own in known) * hybrid
    if told is not None:
        weight_rows = weight_rows + (told.weight > 0).flatten(1).sum(dim=1)
    short = (solution.rank < stages[0].geometry.unknowns)[:, None]
    ends = (torch.where(short, end, solution.value) for end in plans[0].bounds)
    gradient_rows = sum(s.geometry.gradient_rows for s in stages)
    return LayerReport(
        " and ".join(stage.name for stage in stages),
        stages[0].geometry.unknowns,
        torch.full_like(solution.rank, gradient_rows),
        weight_rows,
        solution.rank,
        solution.condition,
        solution.residual,
        tuple(kinds),
        torch.zeros_like(solution.rank),
        torch.zeros_like(solution.value),
        *ends,
    )

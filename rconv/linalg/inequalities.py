"""What inequalities add to equations that are short of rank, by linear programs.

Equations leave a family x = x0 + N z. Where inequalities h + G z ≥ 0 hold besides, few of its
points may be left, and often only one. A linear program finds the point that satisfies all of
them by the largest margin t. If t is not positive, its dual is a proof: weights y ≥ 0 with
yᵀG = 0 and yᵀh = t = 0 force all with a positive weight to be equalities, whatever z is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from scipy import sparse
from tqdm import tqdm

PROGRAM = 1e-9
"""Margin, in the unit of the unknown, up to which a program of HiGHS is exact."""

OPTIONS = {
    "primal_feasibility_tolerance": 1e-10,
    "dual_feasibility_tolerance": 1e-10,
    "time_limit": 5.0,
    "maxiter": 3000,
}
"""Of HiGHS; degenerate programs can keep it for minutes. Programs of this size take some hundred
steps: the limit of steps does not depend on how busy the machine is."""

ATTEMPTS = (
    ("highs-ds", OPTIONS),
    ("highs-ipm", OPTIONS),
    ("highs-ds", {"time_limit": OPTIONS["time_limit"]}),
)
"""Methods and options of HiGHS, in the order in which they are tried. The simplex method fails on
some degenerate programs with tolerances this small; its own tolerances are 1e-7."""

SIMPLEX_STEPS = 6_000
"""Steps of the simplex method until all that is forced must be found. A layer that is closed takes
some hundred; one that stays open can take a program for each of its directions."""

MOST = 450_000
"""Entries of the largest program that is tried: it takes about a second."""

DEEP = 1.0
"""Margins are looked for up to here, in the unit of the unknown: beyond, no bound is near."""

SHARE, ROUNDS = 2, 50
"""Rows that enter at a time, per column, and how often more may enter. Most inequalities are far
from holding with equality, and a program of the others has the same solution."""

FEW = int((MOST / (2 * SHARE)) ** 0.5)
"""Columns up to which the program is of a size that is tried, if two thirds of its rows enter as
needed."""

MOVES = 1e-6
"""A unit direction that changes an inequality by less, against the largest change that it can
have, does not change it: null spaces come from normal equations, with half the digits."""

POSITIVE = 1e-8
"""Of all weights, whose sum is 1: what the program leaves of a zero is below."""

CONTRADICTS = 10.0
"""Times the noise that a negative margin may reach before the inequalities contradict each other:
the noise is that of an average value, and that of a few values is ten times as large."""

ACTIVE_STEPS, WORK = 2_000, 5e9
"""Steps of least squares over x ≥ 0, and their square times the rows, at most: about a second."""

UNBOUNDED = 3  # linprog's status


@dataclass(frozen=True)
class Forced:
    """What a set of m inequalities forces.

    Those that are `active`, (m,), hold with equality at every point that satisfies all of them; so
    many directions are `left` open. `margin` is that of the last program, negative where nothing
    satisfies all inequalities.
    """

    active: np.ndarray
    left: int
    margin: float


def moving(directions: np.ndarray, size: float | None = None) -> np.ndarray:
    """(m,), bool: which rows some open direction (m, r) moves; the others are decided already.

    `size` is the largest norm that a row can have; by default that of these.
    """
    size = _size(directions) if size is None else size
    return np.linalg.norm(directions, axis=1) > MOVES * size


def forced(values: np.ndarray, directions: np.ndarray, noise: float) -> Forced | None:
    """Which of the inequalities values + directions · z ≥ 0 leave no room, and what they leave.

    `values` is h (m,), in the unit of the unknown's root mean square, `directions` is G (m, r), and
    errors of the values up to `noise` count as none. Returns None if the program is too large or
    fails.
    """
    active, margin = np.zeros(len(values), dtype=bool), np.inf
    size, steps = _size(directions), SIMPLEX_STEPS
    while directions.shape[1]:
        moved = moving(directions, size)
        if not moved.any():
            break
        program = chebyshev_center(values[moved], directions[moved], steps)
        if program is None and not active.any():
            return None
        if program is None:  # what was found holds all the same
            break
        margin, weights, used = program
        steps -= used
        tight = np.zeros_like(active)
        tight[moved] = weights > POSITIVE
        room = noise + PROGRAM
        if not -CONTRADICTS * room <= margin <= room or not tight.any():
            break
        active |= tight
        values, directions = _reduced(values, directions, tight)
    return Forced(active, directions.shape[1], float(margin))


def forced_at(values: np.ndarray, directions: np.ndarray, noise: float) -> Forced | None:
    """`forced` for many directions, from a point that satisfies the inequalities.

    Only those that hold with equality there can be forced. Weights on them that prove it are
    orthogonal to all directions: a program in as many unknowns as there are such weights, which are
    few where the directions are many. None also where some value is negative beyond the noise.
    """
    if values.min(initial=0.0) < -noise - PROGRAM:
        return None
    tight = (values < noise + PROGRAM) & moving(directions)
    active = np.zeros_like(tight)
    u, s, _ = np.linalg.svd(directions[tight], full_matrices=True)
    weights = u[:, int((s > MOVES * s.max(initial=0.0)).sum()) :] * np.sqrt(max(len(u), 1))
    rows, columns = weights.shape
    if not columns:
        return Forced(active, directions.shape[1], 0.0)
    if rows * (rows + columns) > MOST:
        return None
    # The most weights that can be positive at once, each counted up to one.
    found = scipy.optimize.linprog(
        np.r_[np.zeros(columns), -np.ones(rows)],
        A_ub=sparse.hstack([-weights, sparse.identity(rows)]),
        b_ub=np.zeros(rows),
        bounds=[(None, None)] * columns + [(0, 1)] * rows,
        method="highs-ds",
        options={"time_limit": OPTIONS["time_limit"]},
    )
    if found.x is None:
        return None
    active[tight] = found.x[columns:] > 0.5  # any positive multiple of the weights will do
    left = _reduced(values, directions, active)[1] if active.any() else directions
    return Forced(active, left.shape[1], 0.0)


def nonnegative(rows: np.ndarray, rhs: np.ndarray) -> np.ndarray | None:
    """A point x ≥ 0 that fits the equations (m, n) best, with few positive entries, (n,).

    Least squares by active sets (Lawson and Hanson). None where that takes more than
    `ACTIVE_STEPS`.
    """
    steps = min(ACTIVE_STEPS, int((WORK / max(len(rows), 1)) ** 0.5))
    try:
        return scipy.optimize.nnls(rows, rhs, maxiter=steps)[0]
    except RuntimeError:
        return None


def _size(directions: np.ndarray) -> float:
    return np.linalg.norm(directions, axis=1).max(initial=0.0)


def _reduced(
    values: np.ndarray, directions: np.ndarray, tight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and directions that keep the tight rows at zero."""
    u, s, vt = np.linalg.svd(directions[tight])
    rank = int((s > MOVES * s[0]).sum())
    step = vt[:rank].T @ (u[:, :rank].T @ -values[tight] / s[:rank])
    return values + directions @ step, directions @ vt[rank:].T


def chebyshev_center(
    values: np.ndarray, directions: np.ndarray, limit: int = SIMPLEX_STEPS
) -> tuple[float, np.ndarray, int] | None:
    """The largest t ≤ `DEEP` with values + directions · z ≥ t for some z.

    Rows enter as the solution of the others violates them; once it violates none, it is that of
    all, and so are the dual's weights. `limit` bounds the steps of the simplex method, of all
    programs together. Returns the margin t; weights (m,), y ≥ 0 of sum one at the most, with yᵀG =
    0: yᵀh = t, if t is below `DEEP`; and the steps that it took. None where the program is too
    large or fails.
    """
    rows, columns = directions.shape
    step = SHARE * (columns + 1)
    used = np.zeros(rows, dtype=bool)
    used[np.argsort(values)[:step]] = True
    steps = 0
    for _ in range(ROUNDS):
        if used.sum() * columns > MOST or steps > limit:
            return None
        found = _program(values[used], directions[used])
        if found is None:
            return None
        steps += found.nit
        short = found.x[-1] - (values + directions @ found.x[:-1])
        short[used] = 0
        beyond = short > PROGRAM / 10
        if not beyond.any():
            weights = np.zeros(rows)
            weights[used] = (-found.ineqlin.marginals).clip(min=0)
            proved = _proved(values, directions, weights)
            return None if proved is None else (*proved, steps)
        used[np.argsort(-short)[:step]] |= beyond[np.argsort(-short)[:step]]
    return None


def _proved(
    values: np.ndarray, directions: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """The margin that the dual's weights prove, whatever the tolerances of the program were.

    For every z, the smallest entry of values + directions · z is at most the weighted sum, which
    does not depend on z. None where the weights are not orthogonal to the directions.
    """
    if np.abs(weights @ directions).max(initial=0.0) > PROGRAM:
        return None
    return float(weights @ values + max(1 - weights.sum(), 0.0) * DEEP), weights


def _program(values: np.ndarray, directions: np.ndarray) -> "scipy.optimize.OptimizeResult | None":
    """The program of some rows, all of them at once; None where it fails."""
    rows, columns = directions.shape
    objective, limits = np.r_[np.zeros(columns), -1.0], np.hstack([-directions, np.ones((rows, 1))])
    tried = _tried(objective, limits, values, [(None, None)] * columns + [(None, DEEP)])
    return next((found for found in tried if found.x is not None), None)


def _tried(
    objective: np.ndarray,
    limits: np.ndarray,
    values: np.ndarray,
    bounds: Sequence[tuple[float | None, float | None]],
) -> "Iterator[scipy.optimize.OptimizeResult]":
    """The least objective where limits · z ≤ values, by each of `ATTEMPTS` until one will do."""
    for method, options in ATTEMPTS:
        yield scipy.optimize.linprog(
            objective, A_ub=limits, b_ub=values, bounds=bounds, method=method, options=options
        )


def tightened_bounds(
    point: np.ndarray,
    basis: np.ndarray,
    values: np.ndarray,
    directions: np.ndarray,
    bounds: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Least and greatest value, (n,) each, of every entry of x = point + basis · z, exactly.

    Two linear programs for each entry that moves, over all z with values + directions · z ≥ 0. A
    program is left out where the solution of another one has the entry at its bound already. No end
    is beyond `bounds`. All is in the unit of the unknown's root mean square. None where the
    programs are too large, or nothing satisfies the inequalities.
    """
    if directions.size > MOST:
        return None
    low, high, free = point.copy(), point.copy(), [(None, None)] * basis.shape[1]
    moved = np.flatnonzero(moving(basis))
    low[moved], high[moved] = np.inf, -np.inf
    for j in tqdm(moved, desc="intervals", unit="entry", leave=False, disable=len(moved) < 100):
        for sign in (1, -1):
            if low[j] <= bounds[0] + PROGRAM if sign > 0 else high[j] >= bounds[1] - PROGRAM:
                continue
            for found in _tried(sign * basis[j], -directions, values, free):
                if found.x is not None or found.status == UNBOUNDED:
                    break
            if found.status == UNBOUNDED:
                low[j], high[j] = (-np.inf, high[j]) if sign > 0 else (low[j], np.inf)
                continue
            if found.x is None:
                return None
            x = point[moved] + basis[moved] @ found.x
            low[moved], high[moved] = np.minimum(low[moved], x), np.maximum(high[moved], x)
    return np.maximum(low, bounds[0]), np.minimum(high, bounds[1])

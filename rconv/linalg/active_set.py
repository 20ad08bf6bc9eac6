"""What inequalities add to equations that are short of rank.

Equations leave a family x = x0 + N z. Where inequalities h + G z ≥ 0 hold besides, few of its
points may be left, and often only one. A linear program finds the point that satisfies all of
them by the largest margin t. If t is not positive, its dual is a proof: weights y ≥ 0 with
yᵀG = 0 and yᵀh = t = 0 force all with a positive weight to be equalities, whatever z is.
"""

from dataclasses import dataclass

import numpy as np
import scipy
from scipy import sparse

from rconv.linalg.chebyshev_center import MOST, OPTIONS, PROGRAM, deepest
from rconv.linalg.chebyshev_center import STEPS as LIMIT

MOVES = 1e-6
"""A unit direction that changes an inequality by less, against the largest change that it can
have, does not change it: null spaces come from normal equations, with half the digits."""

POSITIVE = 1e-8
"""Of all weights, whose sum is 1: what the program leaves of a zero is below."""

CONTRADICTS = 10.0
"""Times the noise that a negative margin may reach before the inequalities contradict each other:
the noise is that of an average value, and that of a few values is ten times as large."""

STEPS, WORK = 2_000, 5e9
"""Steps of least squares over x ≥ 0, and their square times the rows, at most: about a second."""


@dataclass(frozen=True)
class Forced:
    """What a set of inequalities forces.

    Parameters
    ----------
    active : np.ndarray
        (m,), bool: these hold with equality at every point that satisfies all of them.
    left : int
        Directions that are still open.
    margin : float
        That of the last program: negative where nothing satisfies all inequalities.
    """

    active: np.ndarray
    left: int
    margin: float


def moving(directions: np.ndarray, size: float | None = None) -> np.ndarray:
    """Which rows some open direction moves; the others are decided already.

    Parameters
    ----------
    directions : np.ndarray
        (m, r).
    size : float, optional
        The largest norm that a row can have; by default that of these.

    Returns
    -------
    np.ndarray
        (m,), bool.
    """
    size = _size(directions) if size is None else size
    return np.linalg.norm(directions, axis=1) > MOVES * size


def forced(values: np.ndarray, directions: np.ndarray, noise: float) -> Forced | None:
    """Which of the inequalities values + directions · z ≥ 0 leave no room, and what they leave.

    Parameters
    ----------
    values : np.ndarray
        h, (m,), in the unit of the unknown's root mean square.
    directions : np.ndarray
        G, (m, r).
    noise : float
        Error of the values that counts as none.

    Returns
    -------
    Forced or None
        None where the program is too large or fails.
    """
    active, margin = np.zeros(len(values), dtype=bool), np.inf
    size, steps = _size(directions), LIMIT
    while directions.shape[1]:
        moved = moving(directions, size)
        if not moved.any():
            break
        program = deepest(values[moved], directions[moved], steps)
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
    orthogonal to all directions: a program in as many unknowns as there are such weights, which
    are few where the directions are many.

    Parameters
    ----------
    values : np.ndarray
        h, (m,), at the point: none negative beyond the noise.
    directions, noise
        As `forced` takes them.

    Returns
    -------
    Forced or None
        None where the program is too large or fails, or some value is negative.
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
    """A point x ≥ 0 that fits the equations best, with few positive entries.

    Least squares by active sets (Lawson and Hanson).

    Parameters
    ----------
    rows : np.ndarray
        (m, n).
    rhs : np.ndarray
        (m,).

    Returns
    -------
    np.ndarray or None
        (n,); None where that takes more than `STEPS`.
    """
    steps = min(STEPS, int((WORK / max(len(rows), 1)) ** 0.5))
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

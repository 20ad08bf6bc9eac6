"""How far each entry of a family can lie where inequalities hold: linear programs, one by one."""

import numpy as np
import scipy
from tqdm import tqdm

from rconv.linalg.active_set import moving
from rconv.linalg.chebyshev_center import MOST, OPTIONS, PROGRAM

UNBOUNDED = 3  # linprog's status


def extremes(
    point: np.ndarray,
    basis: np.ndarray,
    values: np.ndarray,
    directions: np.ndarray,
    bounds: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Least and greatest value of every entry of x = point + basis · z, exactly.

    Two linear programs for each entry that moves, over all z with values + directions · z ≥ 0. A
    program is left out where the solution of another one has the entry at its bound already.

    Parameters
    ----------
    point : np.ndarray
        (n,), in the unit of the unknown's root mean square.
    basis : np.ndarray
        (n, r).
    values : np.ndarray
        h, (m,), with the error that counts as none added to them.
    directions : np.ndarray
        G, (m, r).
    bounds : tuple of float
        Range of x, in the same unit; no end is further.

    Returns
    -------
    low, high : np.ndarray
        (n,) each, equal where nothing moves.
    None
        Where the programs are too large, or nothing satisfies the inequalities.
    """
    if directions.size > MOST:
        return None
    low, high = point.copy(), point.copy()
    moved = np.flatnonzero(moving(basis))
    low[moved], high[moved] = np.inf, -np.inf
    for j in tqdm(moved, desc="intervals", unit="entry", leave=False, disable=len(moved) < 100):
        for sign in (1, -1):
            if low[j] <= bounds[0] + PROGRAM if sign > 0 else high[j] >= bounds[1] - PROGRAM:
                continue
            found = scipy.optimize.linprog(
                sign * basis[j],
                A_ub=-directions,
                b_ub=values,
                bounds=[(None, None)] * basis.shape[1],
                method="highs",
                options=OPTIONS,
            )
            if found.status == UNBOUNDED:
                low[j], high[j] = (-np.inf, high[j]) if sign > 0 else (low[j], np.inf)
                continue
            if found.x is None:
                return None
            x = point[moved] + basis[moved] @ found.x
            low[moved], high[moved] = np.minimum(low[moved], x), np.maximum(high[moved], x)
    return np.maximum(low, bounds[0]), np.minimum(high, bounds[1])

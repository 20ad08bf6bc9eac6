"""The point of a family that satisfies inequalities by the largest margin, and its proof."""

import numpy as np
import scipy

PROGRAM = 1e-9
"""Margin, in the unit of the unknown, up to which a program of HiGHS is exact."""

OPTIONS = {
    "primal_feasibility_tolerance": 1e-10,
    "dual_feasibility_tolerance": 1e-10,
    "time_limit": 5.0,
}
"""Of HiGHS; degenerate programs can keep it for minutes."""

MOST = 450_000
"""Entries of the largest program that is tried: it takes about a second."""

DEEP = 1.0
"""Margins are looked for up to here, in the unit of the unknown: beyond, no bound is near."""

ROOM = 1e-5
"""Margin that is one for certain even with the tolerances of HiGHS itself, which are 1e-7."""

SHARE, ROUNDS = 2, 50
"""Rows that enter at a time, per column, and how often more may enter. Most inequalities are far
from holding with equality, and a program of the others has the same solution."""

FEW = int((MOST / (2 * SHARE)) ** 0.5)
"""Columns up to which the program is of a size that is tried, if two thirds of its rows enter as
needed."""


def deepest(values: np.ndarray, directions: np.ndarray) -> tuple[float, np.ndarray] | None:
    """The largest t ≤ `DEEP` with values + directions · z ≥ t for some z.

    Rows enter as the solution of the others violates them; once it violates none, it is that of
    all, and so are the dual's weights.

    Parameters
    ----------
    values : np.ndarray
        h, (m,).
    directions : np.ndarray
        G, (m, r).

    Returns
    -------
    t : float
        The margin.
    weights : np.ndarray
        (m,), y ≥ 0 of sum one at the most, with yᵀG = 0: yᵀh = t, if t is below `DEEP`.
    None
        Where the program is too large or fails.
    """
    rows, columns = directions.shape
    step = SHARE * (columns + 1)
    used = np.zeros(rows, dtype=bool)
    used[np.argsort(values)[:step]] = True
    for _ in range(ROUNDS):
        if used.sum() * columns > MOST:
            return None
        found = _program(values[used], directions[used])
        if found is None:
            return None
        margin = float(found.x[-1])
        short = margin - (values + directions @ found.x[:-1])
        short[used] = 0
        beyond = short > PROGRAM / 10
        if not beyond.any():
            weights = np.zeros(rows)
            weights[used] = -found.ineqlin.marginals
            return margin, weights
        used[np.argsort(-short)[:step]] |= beyond[np.argsort(-short)[:step]]
    return None


def _program(values: np.ndarray, directions: np.ndarray) -> "scipy.optimize.OptimizeResult | None":
    """The program of some rows, all of them at once; None where it fails.

    Where HiGHS cannot reach the tolerances, its own will do to tell that there is room.
    """
    rows, columns = directions.shape
    for options, least in ((OPTIONS, -np.inf), ({"time_limit": OPTIONS["time_limit"]}, ROOM)):
        found = scipy.optimize.linprog(
            np.r_[np.zeros(columns), -1.0],
            A_ub=np.hstack([-directions, np.ones((rows, 1))]),
            b_ub=values,
            bounds=[(None, None)] * columns + [(None, DEEP)],
            method="highs-ds",
            options=options,
        )
        if found.x is not None and found.x[-1] > least:
            return found
    return None

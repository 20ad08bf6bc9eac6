"""The point of a family that satisfies inequalities by the largest margin, and its proof."""

import numpy as np
import scipy

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

STEPS = 6_000
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


def deepest(
    values: np.ndarray, directions: np.ndarray, limit: int = STEPS
) -> tuple[float, np.ndarray, int] | None:
    """The largest t ≤ `DEEP` with values + directions · z ≥ t for some z.

    Rows enter as the solution of the others violates them; once it violates none, it is that of
    all, and so are the dual's weights.

    Parameters
    ----------
    values : np.ndarray
        h, (m,).
    directions : np.ndarray
        G, (m, r).
    limit : int
        Steps of the simplex method, of all programs together.

    Returns
    -------
    t : float
        The margin.
    weights : np.ndarray
        (m,), y ≥ 0 of sum one at the most, with yᵀG = 0: yᵀh = t, if t is below `DEEP`.
    steps : int
        That it took.
    None
        Where the program is too large or fails.
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
    for method, options in ATTEMPTS:
        found = scipy.optimize.linprog(
            np.r_[np.zeros(columns), -1.0],
            A_ub=np.hstack([-directions, np.ones((rows, 1))]),
            b_ub=values,
            bounds=[(None, None)] * columns + [(None, DEEP)],
            method=method,
            options=options,
        )
        if found.x is not None:
            return found
    return None

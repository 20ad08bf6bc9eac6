"""Iterative refinement, once for all solvers."""

from collections.abc import Callable

import torch
from torch import Tensor

from rconv.linalg.solution import CONVERGED, STALLED, aligned, relative

LIMIT = 30
"""Corrections at most. Each one divides the error by at least two, or refinement stops; 30 of
them pass from no digit to nine, more than normal equations can lose within their limit."""

ROUNDING = torch.finfo(torch.float64).eps / 2

NEGLIGIBLE = 100 * torch.finfo(torch.float64).eps
"""A correction of a few roundings, as large systems leave them, is none that did not shrink."""


def refine(
    correction: Callable[[Tensor], Tensor], value: Tensor
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Correct a batch of solutions until what the next correction would change is rounding.

    Corrections shrink by a constant factor, that of the last two: where the next one is expected
    below the rounding, or one did not halve its predecessor, a solution is left as it is, whatever
    the others of the batch need. The correction takes solutions (N, n, k) and returns what to add
    to them. Returns the solutions, the number of corrections of each (N,), and N times `CONVERGED`
    or `STALLED`.
    """
    last = value.new_ones(len(value))
    active = torch.ones_like(last, dtype=torch.bool)
    count, converged = torch.zeros_like(last, dtype=torch.int64), ~active
    for _ in range(LIMIT):
        step = correction(value)
        size = relative(step, value)
        converged = converged | (active & (size <= NEGLIGIBLE))
        active = active & (size <= last / 2)
        if not active.any():
            break
        value = torch.where(aligned(active, value), value + step, value)
        count = count + active
        converged = converged | (active & (size * (size / last) <= ROUNDING))
        active = active & ~converged
        last = size
        if not active.any():
            break
    return value, count, tuple(CONVERGED if done else STALLED for done in converged.tolist())

"""Nonlinear least squares: Gauss-Newton with Levenberg's and Marquardt's damping."""

from collections.abc import Callable

import torch
from torch import Tensor

from rconv.linalg.refine import NEGLIGIBLE

STEPS = 60
"""Steps at most. From a good start there are three to six; what has not converged after ten times
as many creeps along a valley, and another start is worth more."""

DAMPING, LEAST, RAISES = 1e-3, 1e-14, 12
"""Damping at first, relative to the normal matrix's diagonal; below which it is none; and how
often it is raised by ten, from one step to the next, before a step counts as the last."""


def levenberg_marquardt(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, good: float = 0.0
) -> tuple[Tensor, float]:
    """A local minimum of ‖f(x)‖: x (n,), and ‖f(x)‖.

    The function takes x and returns f (m,) and its derivative (m, n). A step that does not halve
    ‖f‖ is the last where ‖f‖ is below `good`.
    """
    x, damping = start, DAMPING
    f, derivative = function(x)
    for _ in range(STEPS):
        size, step = float(f.norm()), None
        column = derivative.norm(dim=0)
        for _ in range(RAISES):
            rows = torch.cat([derivative, torch.diag(damping**0.5 * column)])
            own = _least_squares(rows, torch.cat([-f, torch.zeros_like(x)]))
            new = function(x + own)
            if float(new[0].norm()) < size:
                step = own
                break
            damping = max(damping, LEAST) * 10
        if step is None:
            break
        x, (f, derivative) = x + step, new
        damping = damping / 10 if damping > LEAST else 0.0
        slow = float(f.norm()) > size / 2
        if float(step.norm()) <= NEGLIGIBLE * float(x.norm()) or (slow and size <= good):
            break
    return x, float(f.norm())


def _least_squares(rows: Tensor, rhs: Tensor) -> Tensor:
    """By QR, so that no digit is lost to a normal matrix; NaN where the rank is short."""
    return torch.linalg.lstsq(rows, rhs[:, None]).solution[:, 0]

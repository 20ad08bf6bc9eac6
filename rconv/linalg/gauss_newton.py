"""Nonlinear least squares around linear ones: Gauss-Newton with Levenberg's damping.

Each step of `gauss_newton` solves the `System` of the equations linearised at the present estimate,
by LSMR with a right preconditioner: no matrix of the whole system is stored. Small problems, whose
derivative is a matrix, are those of `levenberg_marquardt`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from rconv.linalg.iterative import COARSE, CORRECTION, SEEN, WEAK
from rconv.linalg.refine import NEGLIGIBLE
from rconv.linalg.solution import CONVERGED, POWERS, PROBES, STALLED, Solution
from rconv.linalg.system import System

STEPS = 60
"""Steps at most; six to fifteen are usual."""

ACCURACY, ITERATIONS = 1e-5, 400
"""Of one step's linear solution. The error of the next estimate is this share of the present one
at least, so that three more steps reach rounding."""

PRECISE, LONG = 1e-10, 4_000
"""Accuracy and iterations of the runs that measure the rank."""

DAMPING, FACTOR, MOST = 1.0, 5.0, 1e6
"""Damping at first, per mean square of the preconditioned columns and of the residual, if that is
below 1; what a good step divides it by and a bad one multiplies it with; where it is given up."""

SLOW, PATIENCE = 0.9, 12
"""A step that leaves more than this share of the residual is slow; so many in a row end it."""

LEAST, REST = 1e-12, 1e-10
"""Damping that a bad step multiplies at least; and the relative size of a step which, where it does
not halve the residual, is rest."""


@dataclass(frozen=True)
class Change:
    """A change of the unknown, x = C y, that makes equations better conditioned.

    `forward` and `backward` are C and its transpose, (n,) → (n,).
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]

    @staticmethod
    def none() -> "Change":
        """x = y."""
        return Change(torch.clone, torch.clone)


def roots_of(gram: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """L (p, p), lower triangular, with L Lᵀ = A + α, and its inverse.

    Parameters
    ----------
    gram : Tensor
        A (p, p), positive semidefinite.
    level : Tensor
        α, which is at least `WEAK` of the norm of A, and more where rounding of A asks for it.
    """
    one, failed = torch.eye(len(gram), dtype=gram.dtype, device=gram.device), True
    level = torch.maximum(level, WEAK * gram.norm()).clamp(min=1e-300)
    while failed:
        if not level.isfinite():  # an iteration has diverged, as its residual shows
            return one, one
        root, failed = torch.linalg.cholesky_ex(gram + torch.diag(level.expand(len(gram))))
        level = level * 10
    return root, torch.linalg.solve_triangular(root, one, upper=False)


@dataclass(frozen=True)
class Stationary:
    """Where an iteration came to rest: its value (n,) after so many steps.

    There are the `system`, whose right-hand side is the residual, and the preconditioner;
    `residual` is the norm of the weighted residual. It has `converged` if the last steps were
    rounding.
    """

    value: Tensor
    system: System
    change: Change
    residual: float
    steps: int
    converged: bool


def gauss_newton(
    linearised: Callable[[Tensor], tuple[System, Change]],
    start: Tensor,
    *,
    good: float = 0.0,
    until: float = 0.0,
    patience: int = PATIENCE,
    most: int = STEPS,
) -> Stationary:
    """A local minimum of the residual.

    `linearised` takes x (n,) and returns the equations of a step from there, N = k = 1, with a
    right preconditioner. `good` is the norm of the residual that is rounding. A norm of `until` or
    less, `patience` slow steps in a row, or `most` steps end the iteration.
    """
    x, slow, rests, steps = start, 0, 0, 0
    system, change = linearised(x)
    size = float(system.rhs.norm().nan_to_num(nan=math.inf))
    damping = min(DAMPING, DAMPING * size * size / system.rhs.shape[1])  # ** overflows
    while steps < most and damping < MOST and slow < patience and rests < 2:
        if not until < size < math.inf:
            break
        steps += 1
        step = linear_step(system, change, system.rhs, damping if size > good else 0.0)
        if not step.isfinite().all():
            break
        new, changed = linearised(x + step)
        norm, moved = float(new.rhs.norm()), float(step.norm() / x.norm().clamp(min=1e-300))
        rests = rests + 1 if norm > size / 2 and (size <= good or moved < REST) else 0
        slow = slow + 1 if norm > SLOW * size else 0
        if norm < size:
            x, system, change, size = x + step, new, changed, norm
            damping = damping / FACTOR
        else:
            damping = max(damping, LEAST) * FACTOR
    return Stationary(x, system, change, size, steps, rests == 2)


def linear_step(
    system: System,
    change: Change,
    rhs: Tensor,
    damping: float = 0.0,
    accuracy: float = ACCURACY,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Damped least squares of one system, N = k = 1, for a right-hand side (1, m, 1): (n,).

    The damping acts on y of the `Change`.
    """
    like, n = system.rhs, system.unknowns

    def product(y: np.ndarray) -> np.ndarray:
        x = change.forward(torch.from_numpy(y).to(like))
        return system.apply(x[None, :, None]).flatten().double().cpu().numpy()

    def adjoint(rows: np.ndarray) -> np.ndarray:
        back = system.adjoint(torch.from_numpy(rows).to(like)[None, :, None])
        return change.backward(back.flatten()).double().cpu().numpy()

    operator = LinearOperator((like.shape[1], n), product, adjoint, dtype=np.float64)
    rows = rhs.flatten().double().cpu().numpy()  # LSMR itself overflows in single precision
    found = lsmr(operator, rows, damping**0.5, accuracy, accuracy, 0.0, iterations)
    return change.forward(torch.from_numpy(found[0]).to(like))


def undetermined(found: Stationary) -> Solution:
    """What is said of an estimate that does not solve its equations: nothing is known."""
    one = torch.ones(1, dtype=torch.float64)
    rank, steps = torch.tensor([0]), torch.tensor([found.steps])
    residual = one * found.residual / found.system.rhs.shape[1] ** 0.5
    fields = rank, one * math.inf, one, residual, one, steps, ("Gauss-Newton",), (STALLED,)
    return Solution(found.value[None, :, None], *fields)


def determined(found: Stationary, *, enough: bool) -> Solution:
    """What the derivative where an iteration came to rest says of the solution.

    The rows of the system must have positive standard deviations. `enough` says whether there are
    more equations than unknowns; if not, none counts as determined. The rank follows from a random
    vector, as in `rconv.linalg.iterative`.
    """
    x, system, generator = found.value, found.system, torch.Generator().manual_seed(0)

    def run(rhs: Tensor, accuracy: float, iterations: int = LONG) -> Tensor:
        return linear_step(system, found.change, rhs, 0.0, accuracy, iterations)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    z = random(x)
    seen = run(system.apply(z[None, :, None]), PRECISE)
    seen = seen + run(system.apply((z - seen)[None, :, None]), CORRECTION)
    left = float((z - seen).norm())
    opened = min(math.ceil(left**2), len(x)) if left > SEEN else 0
    std, size = system.std, x.norm().clamp(min=1e-300)
    shifts = [run(random(std) * std, COARSE) for _ in range(PROBES)]
    weak = max(shifts, key=lambda shift: float(shift.norm()))
    # A residual above the noise is an error of the equations, too.
    beyond = max(1.0, found.residual / max(float(std.norm()), 1e-300))
    error = (beyond * weak.norm() / size).clamp(min=NEGLIGIBLE)
    noise = std.norm() / system.rhs.shape[1] ** 0.5
    one = torch.ones(1, dtype=torch.float64)
    rank = len(x) - opened if enough else 0
    return Solution(
        x[None, :, None],
        torch.tensor([rank]),
        one * _condition(system, weak),
        one * error / noise.clamp(min=1e-300),
        one * found.residual / system.rhs.shape[1] ** 0.5,
        one * error,
        torch.tensor([found.steps]),
        ("Gauss-Newton",),
        (CONVERGED if found.converged else STALLED,),
    )


def _condition(system: System, weak: Tensor) -> float:
    """A lower bound, by the power method and by a vector that weak directions dominate."""
    strong = weak[None, :, None]
    for _ in range(POWERS):
        strong = system.adjoint(system.apply(strong / strong.norm().clamp(min=1e-300)))
    least = system.apply(weak[None, :, None]).norm() / weak.norm().clamp(min=1e-300)
    return float(strong.norm().sqrt() / least.clamp(min=1e-300))


MARQUARDT_STEPS = 60
"""Steps at most. From a good start there are three to six; what has not converged after ten times
as many creeps along a valley, and another start is worth more."""

MARQUARDT, UNDAMPED, RAISES = 1e-3, 1e-14, 12
"""Damping at first, relative to the normal matrix's diagonal; below which it is none; and how
often it is raised by ten, from one step to the next, before a step counts as the last."""


def levenberg_marquardt(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, good: float = 0.0
) -> tuple[Tensor, float]:
    """A local minimum of ‖f(x)‖: x (n,), and ‖f(x)‖.

    The function takes x and returns f (m,) and its derivative (m, n). A step that does not halve
    ‖f‖ is the last where ‖f‖ is below `good`.
    """
    x, damping = start, MARQUARDT
    f, derivative = function(x)
    for _ in range(MARQUARDT_STEPS):
        size, step = float(f.norm()), None
        column = derivative.norm(dim=0)
        for _ in range(RAISES):
            rows = torch.cat([derivative, torch.diag(damping**0.5 * column)])
            rhs = torch.cat([-f, torch.zeros_like(x)])[:, None]
            # By QR, so that no digit is lost to a normal matrix; NaN where the rank is short.
            trial = torch.linalg.lstsq(rows, rhs).solution[:, 0]
            new = function(x + trial)
            if float(new[0].norm()) < size:
                step = trial
                break
            damping = max(damping, UNDAMPED) * 10
        if step is None:
            break
        x, (f, derivative) = x + step, new
        damping = damping / 10 if damping > UNDAMPED else 0.0
        slow = float(f.norm()) > size / 2
        if float(step.norm()) <= NEGLIGIBLE * float(x.norm()) or (slow and size <= good):
            break
    return x, float(f.norm())

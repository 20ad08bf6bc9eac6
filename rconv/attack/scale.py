"""The scale of the input of a Linear without a bias, from cross-entropy itself.

Its weight gradient z̄ vᵀ tells v and z̄ up to a common factor. The loss gives it: z̄ must be the
softmax of the logits V v minus the one-hot label.
"""

import math

import torch
from torch import Tensor

from rconv.attack.labels import told_labels

GRID = 2000
"""Points between which roots are looked for, over at most some 1,500 units of log t. Roots that
are closer than the grid show as a turn, which is refined."""


def scales(logits: Tensor, left: Tensor) -> tuple[list[float], float]:
    """Scales t for which t·direction has exactly the logit gradient left / t.

    With w = V·direction, the label row says t·σ(m(t)) = |left[y]| for the margin
    m(t) = log Σ_{k≠y} exp(t w_k) - t w_y. A single logit or two classes leave the sign of t
    open, and there the equation can have two roots: twin images with the same gradients.

    Parameters
    ----------
    logits : Tensor
        w, (K,).
    left : Tensor
        (K,), the logit gradient times t.

    Returns
    -------
    list of float
        The scales, at least one, negative ones included.
    float
        Relative mismatch of the best of them: not small where the loss is not cross-entropy.
    """
    w, left = logits.double().cpu(), left.double().cpu()
    told = len(w) > 2 and bool((left > 0).sum() > 1 or not (left < 0).any())
    found = []
    for sign in (1.0,) if told else (1.0, -1.0):
        difference, size = _label_row(w, left, sign)
        if size > 0:
            solve = _closed_roots if len(difference) == 1 else _searched_roots
            found += [sign * t for t in solve(difference, size)]
    # Where no scale fits, which another loss may bring about, that of a probability of one half.
    found = found or [2 * float(left.abs().max())]
    misses = [_mismatch(w, left, t) for t in found]
    least = min(misses)
    if len(w) > 2:
        found = [t for t, miss in zip(found, misses, strict=True) if miss <= least + 1e-7]
    return found, least


def _label_row(w: Tensor, left: Tensor, sign: float) -> tuple[Tensor, float]:
    """Differences of the other logits to the label's, and the size of the label's row."""
    if len(w) == 1:
        return -w, float(left.abs().sum())
    # The label's row is the negative one. Its size is the sum of the others, which rounding has
    # not cancelled.
    y = int(told_labels(sign * left[None], sign * w[None]))
    difference = sign * (torch.cat([w[:y], w[y + 1 :]]) - w[y])
    return difference, float((sign * left).clamp(min=0).sum())


def _closed_roots(difference: Tensor, size: float) -> list[float]:
    """All t > 0 with t·σ(t·d) = s: t = s + W(s d exp(-s d)) / d, by Lambert's W.

    Two where d < 0, on the branches 0 and -1, which meet at -1/e; where noise has left none, the
    place where they meet.
    """
    d = float(difference[0])
    if d == 0:
        return [2 * size]
    exponent = min(-size * d, 700.0)
    argument = max(size * d * math.exp(exponent), -math.exp(-1))
    branches = (0,) if d > 0 else (0, -1)
    roots = [size + _lambert_w(argument, k) / d for k in branches]
    return [t for t in dict.fromkeys(roots) if 0 < t < math.inf]


def _lambert_w(argument: float, branch: int) -> float:
    """W to the last digits, or nearly; by its equation where SciPy's iteration circles or stops.

    Near -1/e, where the branches meet, SciPy's iteration may return neither a number nor an error.
    """
    from scipy.optimize import brentq  # slow to import, and few heads have no bias
    from scipy.special import lambertw

    found = (float(lambertw(argument, branch, tol=tol).real) for tol in (1e-15, 1e-14, 1e-12))
    value = next((w for w in found if not math.isnan(w)), None)
    if value is not None or argument == 0:
        return value or 0.0
    log_size = math.log(abs(argument))

    def equation(w: float) -> float:
        return w + math.log(abs(w)) - log_size

    if argument > 0:
        ends = min(argument, 1.0) / 4, max(log_size, 1.0)
    else:
        ends = -1.0, (argument if branch == 0 else 2 * log_size - 1)
        if equation(-1.0) <= 0:
            return -1.0
    rounding = 4 * torch.finfo(torch.float64).eps
    return brentq(equation, *ends, xtol=1e-300, rtol=rounding, maxiter=3000)


def _searched_roots(difference: Tensor, size: float) -> list[float]:
    """All t > 0 with t·σ(logsumexp(t·difference)) = size, or the nearest miss."""
    from scipy.optimize import brentq

    log_size = math.log(size)

    def equation(log_t) -> Tensor:
        log_t = torch.as_tensor(log_t, dtype=torch.float64)
        margin = torch.logsumexp(log_t.exp()[..., None] * difference, dim=-1)
        return log_t + torch.nn.functional.logsigmoid(margin) - log_size

    # Far out the largest difference alone makes the margin. Beyond ±1500 the sigmoid is 0 or 1 to
    # the last bit, and nothing changes sign.
    slope = max(abs(float(difference.max())), 1e-300)
    top = max(log_size + 1.0, math.log(1500 / slope))
    grid = torch.linspace(log_size - 1e-6, top, GRID, dtype=torch.float64)
    values = equation(grid)
    brackets = _crossings(grid, values) + _turns(grid, values, equation)
    if not brackets:
        return [float(grid[values.abs().argmin()].exp())]
    options = {"xtol": 1e-15, "rtol": 1e-15}
    return [
        math.exp(brentq(lambda s: float(equation(s)), a, b, **options) if a < b else a)
        for a, b in brackets
    ]


def _crossings(grid: Tensor, values: Tensor) -> list[tuple[float, float]]:
    """Neighbours of the grid between which the equation changes its sign."""
    crossing = ((values[:-1] < 0) != (values[1:] < 0)).nonzero()[:, 0].tolist()
    return [(float(grid[i]), float(grid[i + 1])) for i in crossing]


def _turns(grid: Tensor, values: Tensor, equation) -> list[tuple[float, float]]:
    """Brackets of two roots that lie between neighbours of the grid, where the equation turns."""
    from scipy.optimize import minimize_scalar

    size = values.abs()
    turning = (size[1:-1] <= size[:-2]) & (size[1:-1] <= size[2:])
    same = (values[:-2] < 0) == (values[2:] < 0)
    brackets = []
    for i in (turning & same).nonzero()[:, 0].tolist():
        a, b = float(grid[i]), float(grid[i + 2])
        sign = 1.0 if values[i] > 0 else -1.0
        turn = minimize_scalar(
            lambda s, sign=sign: sign * float(equation(s)),
            bounds=(a, b),
            method="bounded",
            options={"xatol": 1e-12},
        )
        if turn.fun < 0:
            brackets += [(a, turn.x), (turn.x, b)]
        elif turn.fun < 1e-9:  # a double root, up to the rounding of its log
            brackets += [(turn.x, turn.x)]
    return brackets


def _mismatch(logits: Tensor, left: Tensor, scale: float) -> float:
    """Relative distance between the logit gradient at a scale and the one observed."""
    observed = left / scale
    if len(logits) == 1:
        label = float(observed[0] < 0)
        return float(
            (torch.sigmoid(scale * logits[0]) - label - observed[0]).abs() / observed.abs()
        )
    gradient = torch.softmax(scale * logits, dim=0)
    label = int(told_labels(observed[None], scale * logits[None]))
    gradient[label] = 0
    gradient[label] = -gradient.sum()  # softmax - 1 without the cancellation
    return float((gradient - observed).abs().max() / observed.abs().max())

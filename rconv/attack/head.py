"""The input of the first Linear, z = V v + c, from its gradients.

∂ℓ/∂V = z̄ vᵀ and ∂ℓ/∂c = z̄ (R-CONV, "fully connected layer"; Phong et al., 2018). With a bias,
v follows by least squares over all rows, each entry of a row weighted by its own noise where that
is known. Without a bias, only the direction of v is known, and the loss itself gives the scale,
provided that this Linear is the last layer.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.attack.estimate import Cotangent, Estimate, Start, channel_errors
from rconv.attack.label_inference import inferred_labels
from rconv.attack.report import LayerReport
from rconv.linalg.solution import relative, root_mean_square
from rconv.model.heads import Head
from rconv.observe.noise import Noise, Observed
from rconv.observe.observation import Gradients

GRID = 2000
"""Points between which roots are looked for, over at most some 1,500 units of log t. Roots that
are closer than the grid show as a turn, which is refined."""


@dataclass(frozen=True)
class HeadInput:
    """Candidates for the input of the first Linear; one per image where there is a bias.

    Parameters
    ----------
    value : Tensor
        v, (M, n).
    cotangent : Tensor
        z̄ = ∂ℓ/∂z, (M, K), up to the image's common scale.
    image : Tensor
        (M,), int64, the image that each candidate explains.
    residual : Tensor
        (M,), ‖∂ℓ/∂V - z̄ vᵀ‖ / ‖∂ℓ/∂V‖: not small where a step saw several images. Without a bias,
        the mismatch of cross-entropy where that is larger.
    known : Tensor
        (M,), bool, False where the gradients are zero and reveal nothing.
    error : Tensor or None
        (M, n), standard deviation of each value where the noise of every entry is declared.
    """

    value: Tensor
    cotangent: Tensor
    image: Tensor
    residual: Tensor
    known: Tensor
    error: Tensor | None = None


def head_input(head: Head, gradients: Gradients, noise: Noise | None = None) -> HeadInput:
    """Candidates for v and z̄ from the gradients of the first Linear.

    M = N where the head has a bias; without a bias up to four per image, since a single logit
    leaves the sign, and at times the scale, to the layers below.

    Parameters
    ----------
    head : Head
        The first Linear.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), float64.
    noise : Noise, optional
        What is known of their errors: weighs the rows where it says each entry's own.
    """
    weight_gradient = gradients[f"{head.name}.weight"]
    if not head.has_bias:
        return _without_bias(head.weight, weight_gradient)
    cotangent = gradients[f"{head.name}.bias"]
    unit = _unit(cotangent.abs().amax(dim=1))
    z = cotangent / unit[:, None]
    g = weight_gradient / unit[:, None, None]
    value = (g.mT @ z[..., None])[..., 0] / _unit(z.square().sum(dim=1))[:, None]
    name, error = f"{head.name}.weight", None
    spread, seen = (
        (noise.row_std(name, g, unit), noise.observed(name, g)) if noise else (None, None)
    )
    if spread is not None:
        own = noise.entry_std(f"{head.name}.bias", z, unit)
        if seen is not None:
            spread = torch.where(seen, spread, torch.inf)
        value, error = _weighted(g, z, spread, own[:, :, None] * value[:, None, :])
        # Rounding of one image is no independent error of every row.
        error = error.maximum(noise.relative * value.abs())
    seen = 1.0 if seen is None else seen
    residual = relative(seen * (g - z[:, :, None] * value[:, None, :]), seen * g)
    known = cotangent.abs().amax(dim=1) > 0
    image = torch.arange(len(z), device=z.device)
    return HeadInput(value, cotangent, image, residual, known, error)


def _weighted(g: Tensor, z: Tensor, spread: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """v from g = z vᵀ with the errors `spread` of g and `other` of z vᵀ; its standard deviations.

    All but z, (N, K), and the results, (N, n), are (N, K, n).
    """
    z, variance = z[:, :, None], (spread.square() + other.square()).clamp(min=1e-300)
    worth = (z.square() / variance).sum(dim=1)
    value = (z * g / variance).sum(dim=1) / _unit(worth)
    # Of a feature that no entry observes nothing is known but the size of the others.
    largest = value.abs().amax(dim=1, keepdim=True)
    return value, torch.where(worth > 0, _unit(worth).rsqrt(), largest)


def _without_bias(weight: Tensor, weight_gradient: Tensor) -> HeadInput:
    found = []
    for i, g in enumerate(weight_gradient):
        unit = _unit(g.abs().max())
        left, direction = rank_one(g / unit)
        if not direction.any():
            found.append((direction, g[:, 0] * 0, i, g.new_zeros(()), False))
            continue
        sizes, mismatch = scales_from_softmax(weight @ direction, left * unit)
        for scale in sizes:
            value, cotangent = direction * scale, left * unit / scale
            residual = relative((g - cotangent[:, None] * value)[None], g[None])[0]
            found.append((value, cotangent, i, residual.clamp(min=mismatch), True))
    value, cotangent, image, residual, known = zip(*found, strict=True)
    device = weight_gradient.device
    return HeadInput(
        torch.stack(value),
        torch.stack(cotangent),
        torch.tensor(image, device=device),
        torch.stack(residual),
        torch.tensor(known, device=device),
    )


def rank_one(g: Tensor) -> tuple[Tensor, Tensor]:
    """Best left·directionᵀ for one gradient (K, n).

    The entry of `left` (K,) at the label is negative; the direction (n,) has norm 1, and is zero
    where the gradient is.
    """
    if not g.any():
        return g[:, 0], torch.zeros_like(g[0])
    gram = g @ g.T
    try:
        u = torch.linalg.eigh(gram).eigenvectors[:, -1]
    except torch.linalg.LinAlgError:
        # LAPACK's iteration at times does not end where all eigenvalues but one are rounding. The
        # column of the largest entry is the vector then, up to rounding.
        u = gram @ gram[:, gram.diagonal().argmax()]
    direction = g.T @ u
    direction = direction / direction.norm()
    left = g @ direction
    # The label's entry, softmax - 1, is the only negative one.
    negative, positive = (left < 0).sum(), (left > 0).sum()
    single = len(left) == 1
    sign = -1.0 if negative > 1 or (positive if single else not positive) else 1.0
    return sign * left, sign * direction


def _unit(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)


def from_head(linear: Head, clients: Observed, shape: tuple[int, int, int]) -> Start:
    """Start from the first Linear of a network, which takes a map (C, H, W).

    Clients are as they were sent. There are several candidates for one client where the Linear has
    no bias.
    """
    head = head_input(linear, clients.gradients, clients.noise)
    observed = clients.select(head.image).normalised()
    noise, unit = observed.noise, observed.unit
    value, z = head.value.reshape(-1, *shape), head.cotangent / unit[:, None]
    cotangent, sizes = z @ linear.weight, z.abs() @ linear.weight.abs()
    if head.error is None:
        levels = [observed.relative_std(n) for n in linear.parameters if n in observed.gradients]
        level = torch.stack(levels).norm(dim=0).clamp(max=1.0)
        error = channel_errors(value, level, ("gradient",) * len(value), noise)
        # Each z̄ carries its own error; where the rows of V cancel, so that v̄ is small, it weighs
        # more.
        spread = level[:, None] * sizes
        if noise.relative_std or noise.std:
            own = level * root_mean_square(z)
            spread = torch.hypot(spread, own[:, None] * linear.weight.norm(dim=0))
    else:
        error = head.error.reshape(value.shape).flatten(2).square().mean(dim=2).sqrt()
        own = noise.entry_std(f"{linear.name}.bias", z, unit)
        spread = (own.square() @ linear.weight.square()).sqrt()
        spread = torch.hypot(spread, noise.relative * sizes)
    size = root_mean_square(cotangent)
    relative = root_mean_square(spread) / torch.where(size > 0, size, 1.0)
    back = Cotangent(cotangent.reshape(value.shape), relative.clamp(max=1.0))
    report = head_report(linear.name, head.value, len(linear.weight), head.residual, head.known)
    estimate = Estimate.whole(value, error)
    return Start(observed, head.image, estimate, back, report, linear.name, z)


def head_report(
    name: str, value: Tensor, classes: int, residual: Tensor, known: Tensor
) -> LayerReport:
    """How well the input (N, n) of the first Linear is determined; `known` (N,) is bool."""
    unknowns = value.shape[1]
    condition = torch.where(known, 1.0, torch.inf).to(residual)
    rank, rows = known * unknowns, classes * unknowns
    return LayerReport.plain(name, "head", unknowns, rows, rank, condition, residual, value)


def scales_from_softmax(logits: Tensor, left: Tensor) -> tuple[list[float], float]:
    """Scales t for which t·direction has exactly the logit gradient left / t, and their mismatch.

    With w = V·direction (K,), the label row says t·σ(m(t)) = |left[y]| for the margin m(t) = log
    Σ_{k≠y} exp(t w_k) - t w_y. A single logit or two classes leave the sign of t open, and there
    the equation can have two roots: twin images with the same gradients.

    At least one scale is returned, negative ones included; the mismatch is relative, of the best of
    them, and not small where the loss is not cross-entropy.
    """
    w, left = logits.double().cpu(), left.double().cpu()
    determined = len(w) > 2 and bool((left > 0).sum() > 1 or not (left < 0).any())
    found = []
    for sign in (1.0,) if determined else (1.0, -1.0):
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
    y = int(inferred_labels(sign * left[None], sign * w[None]))
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
    label = int(inferred_labels(observed[None], scale * logits[None]))
    gradient[label] = 0
    gradient[label] = -gradient.sum()  # softmax - 1 without the cancellation
    return float((gradient - observed).abs().max() / observed.abs().max())

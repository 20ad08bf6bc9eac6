"""The input of the first Linear, z = V v + c, from its gradients.

∂ℓ/∂V = z̄ vᵀ and ∂ℓ/∂c = z̄ (R-CONV, "fully connected layer"). With a bias, v follows by least
squares over all rows. Without one, only the direction of v is known, and the loss itself
gives the scale, provided that this Linear is the last layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.linalg.solution import relative
from rconv.model.read import Head
from rconv.observe.observation import Gradients

GRID = 2000


@dataclass(frozen=True)
class HeadInput:
    """Candidates for the input of the first Linear; one per image where there is a bias.

    Attributes
    ----------
    value : v, (M, n).
    cotangent : z̄ = ∂ℓ/∂z, (M, K), up to the image's common scale.
    image : (M,) int64, the image that each candidate explains.
    residual : (M,), ‖∂ℓ/∂V - z̄ vᵀ‖ / ‖∂ℓ/∂V‖: not small where a step saw several images.
    known : (M,) bool, False where the gradients are zero and tell nothing.
    """

    value: Tensor
    cotangent: Tensor
    image: Tensor
    residual: Tensor
    known: Tensor


def head_input(head: Head, gradients: Gradients) -> HeadInput:
    """Candidates for v and z̄ from the gradients of the first Linear.

    Parameters
    ----------
    head : the first Linear.
    gradients : name → (N, *parameter shape), float64.

    Returns
    -------
    HeadInput with M = N where the head has a bias; without a bias up to four per image, since
    a single logit leaves the sign, and at times the scale, to be told by the layers below.
    """
    weight_gradient = gradients[f"{head.name}.weight"]
    if not head.has_bias:
        return _without_bias(head.weight, weight_gradient)
    cotangent = gradients[f"{head.name}.bias"]
    unit = _unit(cotangent.abs().amax(dim=1))
    z = cotangent / unit[:, None]
    g = weight_gradient / unit[:, None, None]
    value = (g.mT @ z[..., None])[..., 0] / _unit(z.square().sum(dim=1))[:, None]
    residual = relative(g - z[:, :, None] * value[:, None, :], g)
    known = cotangent.abs().amax(dim=1) > 0
    return HeadInput(value, cotangent, torch.arange(len(z), device=z.device), residual, known)


def _without_bias(weight: Tensor, weight_gradient: Tensor) -> HeadInput:
    found = []
    for i, g in enumerate(weight_gradient):
        unit = _unit(g.abs().max())
        left, direction = rank_one(g / unit)
        if not direction.any():
            found.append((direction, g[:, 0] * 0, i, g.new_zeros(()), False))
            continue
        for scale in _scales(weight @ direction, left * unit):
            value, cotangent = direction * scale, left * unit / scale
            residual = relative((g - cotangent[:, None] * value)[None], g[None])[0]
            found.append((value, cotangent, i, residual, True))
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
    """Best left·directionᵀ for g (K, n), ‖direction‖ = 1; the label's entry of left is < 0."""
    if not g.any():
        return g[:, 0], torch.zeros_like(g[0])
    u = torch.linalg.eigh(g @ g.T).eigenvectors[:, -1]
    direction = g.T @ u
    direction = direction / direction.norm()
    left = g @ direction
    # The label's entry, softmax - 1, is the only negative one.
    negative, positive = (left < 0).sum(), (left > 0).sum()
    single = len(left) == 1
    sign = -1.0 if negative > 1 or (positive if single else not positive) else 1.0
    return sign * left, sign * direction


def _scales(logits: Tensor, left: Tensor) -> list[float]:
    """Scales t for which v = t·direction has exactly the logit gradient left / t.

    With w = V·direction, the label row says t·σ(m(t)) = |left[y]| for the margin
    m(t) = log Σ_{k≠y} exp(t w_k) - t w_y. A single logit or two classes leave the sign of t
    open, and there the equation can have two roots: twin images with the same gradients.
    """
    w, left = logits.double().cpu(), left.cpu()
    found = []
    told = len(w) > 2 and bool((left > 0).sum() > 1 or not (left < 0).any())
    for sign in (1.0,) if told else (1.0, -1.0):
        if len(w) == 1:
            difference, size = -w, left.abs().sum()
        else:
            # The label's row is the negative one. Its size is the sum of the others, which
            # rounding has not cancelled.
            y = _label(w, left, sign)
            difference = sign * (torch.cat([w[:y], w[y + 1 :]]) - w[y])
            size = (sign * left).clamp(min=0).sum()
        found += [sign * t for t in _roots(difference, float(size))] if size > 0 else []
    if len(w) > 2:
        misses = [_mismatch(w, left, t) for t in found]
        found = [t for t, miss in zip(found, misses, strict=True) if miss <= min(misses) + 1e-7]
    return found


def _roots(difference: Tensor, size: float) -> list[float]:
    """All t > 0 with t·σ(logsumexp(t·difference)) = size."""
    from scipy.optimize import brentq, minimize_scalar  # slow to import, and few heads have no bias

    log_size = torch.tensor(size, dtype=torch.float64).log()

    def equation(log_t):
        log_t = torch.as_tensor(log_t, dtype=torch.float64)
        margin = torch.logsumexp(log_t.exp()[..., None] * difference, dim=-1)
        return log_t + torch.nn.functional.logsigmoid(margin) - log_size

    slope = float(difference.abs().max())
    top = max(float(log_size) + 1.0, float(torch.log(torch.tensor(1500 / max(slope, 1e-300)))))
    grid = torch.linspace(float(log_size) - 1e-6, top, GRID, dtype=torch.float64)
    values = equation(grid)
    crossing = ((values[:-1] < 0) != (values[1:] < 0)).nonzero()[:, 0].tolist()
    brackets = [(float(grid[i]), float(grid[i + 1])) for i in crossing]
    # Two roots may lie between neighbours of the grid, where the equation turns.
    size = values.abs()
    turning = (size[1:-1] <= size[:-2]) & (size[1:-1] <= size[2:])
    same = (values[:-2] < 0) == (values[2:] < 0)
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
        elif turn.fun < 1e-9:
            brackets += [(turn.x, turn.x)]
    if not brackets:
        return [float(grid[values.abs().argmin()].exp())]
    solve = lambda a, b: (  # noqa: E731
        brentq(lambda s: float(equation(s)), a, b, xtol=1e-15, rtol=1e-15) if a < b else a
    )
    found = [solve(a, b) for a, b in brackets]
    return [float(torch.tensor(s, dtype=torch.float64).exp()) for s in found]


def _label(logits: Tensor, left: Tensor, sign: float) -> int:
    """Row of the label: the negative one, or the likeliest where softmax - 1 was rounded to 0."""
    rows = sign * left
    return int(rows.argmin()) if (rows < 0).any() else int((sign * logits).argmax())


def _mismatch(logits: Tensor, left: Tensor, scale: float) -> float:
    """Relative distance between the logit gradient at a scale and the one observed."""
    gradient = torch.softmax(scale * logits, dim=0)
    label = _label(logits, left, scale)
    gradient[label] = 0
    gradient[label] = -gradient.sum()  # softmax - 1 without the cancellation
    return float((gradient - left / scale).abs().max() / (left / scale).abs().max())


def _unit(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)

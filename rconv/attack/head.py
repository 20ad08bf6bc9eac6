"""The input of the first Linear, z = V v + c, from its gradients.

∂ℓ/∂V = z̄ vᵀ and ∂ℓ/∂c = z̄ (R-CONV, "fully connected layer"; Phong et al., 2018). With a bias,
v follows by least squares over all rows, each entry of a row weighted by its own noise where that
is told. Without a bias, only the direction of v is known, and the loss itself gives the scale,
provided that this Linear is the last layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.attack.scale import scales
from rconv.linalg.solution import relative
from rconv.model.ends import Head
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


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
        (M,), bool, False where the gradients are zero and tell nothing.
    error : Tensor or None
        (M, n), standard deviation of each value where every gradient's own noise is told.
    """

    value: Tensor
    cotangent: Tensor
    image: Tensor
    residual: Tensor
    known: Tensor
    error: Tensor | None = None


def head_input(head: Head, gradients: Gradients, noise: Noise | None = None) -> HeadInput:
    """Candidates for v and z̄ from the gradients of the first Linear.

    Parameters
    ----------
    head : Head
        The first Linear.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), float64.
    noise : Noise, optional
        What is known of their errors: weighs the rows where it says each entry's own.

    Returns
    -------
    HeadInput
        With M = N where the head has a bias; without a bias up to four per image, since a single
        logit leaves the sign, and at times the scale, to be told by the layers below.
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
    spread, seen = (noise.rows(name, g, unit), noise.observed(name, g)) if noise else (None, None)
    if spread is not None:
        own = noise.deviation(f"{head.name}.bias", z, unit)
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
        sizes, mismatch = scales(weight @ direction, left * unit)
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
    """Best left·directionᵀ for one gradient.

    Parameters
    ----------
    g : Tensor
        (K, n).

    Returns
    -------
    left : Tensor
        (K,), whose entry at the label is negative.
    direction : Tensor
        (n,), of norm 1; zero where `g` is.
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

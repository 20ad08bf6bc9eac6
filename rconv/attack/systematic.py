r"""Errors that are no noise: what several similar images or several steps would do to the image.

The mean gradient of two images that differ by δ is that of their mean up to the second order in δ:
a residual r in the gradients may come with an error of the image of the order of √r, far above
what noise of size r leads to. Several steps of one image leave the same trace, since its features
and cotangents move along with the weights.

At the head this can be computed. With the features :math:`v_i = v + \delta_i` of images of one
class, the logit gradients are :math:`z_i \approx z + S V \delta_i`, where S is the derivative of
the softmax, and the mean gradient is

.. math:: \mathrm{mean}(z_i v_i^\top) = z v^\top + S V \, \mathrm{mean}(\delta_i \delta_i^\top).

So the largest singular value s of what is left beside :math:`z v^\top`, with the singular vectors
u and w, belongs to differences of the size :math:`\sqrt{s / \|S V w\|}` along w, provided that u
is the direction of :math:`S V w`.
"""

import torch
from torch import Tensor

from rconv.attack.verdict import ARITHMETIC
from rconv.model.ends import Head
from rconv.observe.noise import ARITHMETIC as ROUNDING
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

SECOND_ORDER = 3.0
"""Relative error of the image per square root of the undeclared relative residual. Two images of
equal weight, whose cotangents differ as much as they do, have 2; where the cotangents differ by
less, it is more. Measured: 1.6 to 4 in the wide network of tests/test_verdict.py."""

LIKENESS = 0.5
"""A trace of several images, in units of the largest singular value that the known noise has, from
which on it counts as seen. Of 40 single images in half precision the largest had 0.49."""

HIDDEN = 5e-2
"""Known noise that could hide images which differ by more than this share is too coarse."""

NO_DIRECTION = 0.1
"""Least cosine that is assumed between the residual and S V w: noise has a random one."""


def second_order(revealed: Tensor) -> Tensor:
    """Relative error of the image where an undeclared residual is a systematic one.

    Parameters
    ----------
    revealed : Tensor
        (N,), relative residual that the known noise does not explain.

    Returns
    -------
    Tensor
        (N,), at most 1.
    """
    return (SECOND_ORDER * revealed.sqrt()).clamp(max=1.0)


def head_mixture(
    head: Head,
    bias: Tensor,
    value: Tensor,
    cotangent: Tensor,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
) -> Tensor:
    """Relative error of the features if the head's residual comes from several similar images.

    Parameters
    ----------
    head : Head
        The only Linear, followed by the softmax.
    bias : Tensor
        c, (K,).
    value, cotangent : Tensor
        Features v (N, n) and logit gradients z (N, K), the latter divided by `unit`.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (N,).

    Returns
    -------
    Tensor
        (N,), at most 1; 0 where the known noise explains the residual and is small enough for
        no difference above `HIDDEN` to drown in it.
    """
    name = f"{head.name}.weight"
    gradient = gradients[name].reshape(-1, *head.weight.shape)
    deviation = noise.deviation(name, gradients[name], unit).reshape(gradient.shape)
    rows = torch.hypot(deviation, ROUNDING * gradient).square().mean(dim=2).sqrt()
    rows = rows.maximum(ARITHMETIC * rows.amax(dim=1, keepdim=True)).clamp(min=1e-300)
    rest = (gradient - cotangent[:, :, None] * value[:, None, :]) / rows[:, :, None]
    largest, left, right = _leading(rest)
    left = rows * left  # no longer of norm 1
    p = torch.softmax(value @ head.weight.mT + bias, dim=1)
    moved = right @ head.weight.mT
    moved = p * (moved - (p * moved).sum(dim=1, keepdim=True))  # S V w of a loss of size 1
    # Gradients are `unit`, and perhaps a clipped client's factor, away from those of the loss.
    p = p.scatter(1, cotangent.argmin(dim=1, keepdim=True), 0.0)
    sizes = torch.stack([own.clamp(min=0.0).norm(dim=1) for own in (cotangent, p)])
    moved = moved * (sizes[0] / sizes[1].clamp(min=1e-300))[:, None]
    sizes = left.norm(dim=1) * moved.norm(dim=1)
    cosine = (left * moved).sum(dim=1) / sizes.clamp(min=1e-300)
    classes, features = head.weight.shape
    drowned = classes**0.5 + features**0.5
    per = left.norm(dim=1) / moved.norm(dim=1).clamp(min=1e-300)
    size = value.norm(dim=1).clamp(min=1e-300)
    seen = (largest * per * cosine.clamp(min=NO_DIRECTION)).sqrt() / size
    hidden = (drowned * per).sqrt() / size
    hidden = torch.where(hidden > HIDDEN, hidden, 0.0)
    found = largest * cosine.clamp(min=NO_DIRECTION) > LIKENESS * drowned
    return torch.where(found, seen.maximum(hidden), hidden).clamp(max=1.0)


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular value (N,) of (N, K, n) and its vectors, (N, K) and (N, n)."""
    _, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    left = vectors[:, :, -1]
    right = (left[:, None, :] @ matrix)[:, 0]
    largest = right.norm(dim=1)
    return largest, left, right / largest.clamp(min=1e-300)[:, None]

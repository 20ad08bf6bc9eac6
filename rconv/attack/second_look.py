"""A second look at an image that does not explain its gradients as well as their noise allows."""

from collections.abc import Callable
from dataclasses import replace

import torch

from rconv.attack.report import LayerReport, Reconstruction
from rconv.attack.systematic import is_scattered, second_order
from rconv.attack.verdict import ARITHMETIC
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

HOPELESS = 0.1
"""Relative noise from which on no further attempt is made: next to all directions drown in it."""


def second_look(
    first: Reconstruction,
    gradients: Gradients,
    noise: Noise,
    attempt: Callable[..., Reconstruction],
) -> Reconstruction:
    """Another answer to one image's gradients, where the first does not explain them.

    Perhaps the equations were the wrong ones: the cheapest are tried. Or the noise is larger
    than was told: then it is the revealed one, and equations and expected error follow.

    Parameters
    ----------
    first : Reconstruction
        Of one image.
    gradients : dict of str to Tensor
        Name → (1, *parameter shape), float64.
    noise : Noise
        What is known of their errors.
    attempt : callable
        Takes gradients and noise, and with `frugal` keeps the cheapest equations.

    Returns
    -------
    Reconstruction
        The better one, with what the noise makes of its expected error.
    """
    frugal = attempt(gradients, noise, frugal=True)
    if not frugal.revealed_noise > 0:
        return frugal
    best = min(first, frugal, key=lambda r: (int(r.gap), float(r.gradient_residual)))
    revealed = torch.minimum(first.revealed_noise, frugal.revealed_noise)
    error = best.growth * revealed
    # The head's residual shows the noise alone, before it turns any derivative.
    levels = [_head_noise(first.layers[0]), float(revealed)]
    systematic = best.systematic_error.maximum(second_order(revealed))
    for level in (own for own in levels if ARITHMETIC < own < HOPELESS):
        told = attempt(gradients, replace(noise, spread=level))
        if told.gradient_residual < best.gradient_residual:
            best, error = told, told.expected_error
        error = error.maximum(told.expected_error)
        if not told.revealed_noise > 0:
            # A noise of the size that the head shows explains all layers, and is one: the head
            # would have the trace of several images.
            if level == levels[0] and is_scattered(best, gradients):
                systematic = told.systematic_error
            revealed = revealed.clamp(max=max(level, float(best.gradient_residual)))
            break
    if revealed >= HOPELESS:
        error = torch.ones_like(error)
    error = error.maximum(best.expected_error).maximum(revealed).clamp(max=1.0)
    return replace(
        best, expected_error=error, revealed_noise=revealed, systematic_error=systematic
    )


def _head_noise(head: LayerReport) -> float:
    """Relative noise of the head's gradient: its residual, which fitting an outer product lowers.

    Of K · n independent errors (K - 1) (n - 1) are left beside a product of K and n entries.
    """
    n, rows = head.unknowns, int(head.gradient_rows[0])
    classes = rows // n
    left = (classes - 1) * (n - 1) / rows if head.constraints[0] == "head" else 0.0
    return float(head.residual[0]) / (left**0.5 if left > 0 else 1.0)

"""What equations and signs leave open in an image, filled by a prior: little total variation.

Only the open directions are moved. What the equations say of the image stays as exact as it is;
what they do not say is guessed, and the result says how much that is.
"""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

SMOOTHING = (1e-2, 1e-3)
"""Differences of neighbours, as shares of the range, below which total variation is rounded off:
a soft start, and one that leaves edges sharp."""

COLOUR = 3.0
"""How much more a change of colour counts than one of brightness, as the channels of a photograph
mostly change together; the best of 1, 2, 3, 4, 5 and 8 on five of the embedded photographs."""

BOX = 30.0
"""Weight of the square of what lies outside the range, against total variation."""

STEPS = 200
"""Steps of L-BFGS for each smoothing, at most."""


def fill(image: Tensor, basis: np.ndarray, value_range: tuple[float, float]) -> Tensor:
    """The image of the family image + basis · z with the least total variation in the range.

    Parameters
    ----------
    image : Tensor
        (C, H, W), float64.
    basis : np.ndarray
        (C·H·W, r), orthonormal.
    value_range : tuple of float
        Of the pixels.

    Returns
    -------
    Tensor
        (C, H, W).
    """
    low, high = value_range
    start, z = image.flatten().cpu().numpy(), np.zeros(basis.shape[1])

    def objective(z: np.ndarray, smoothing: float) -> tuple[float, np.ndarray]:
        pixels = torch.from_numpy((start + basis @ z - low) / (high - low)).reshape(image.shape)
        pixels.requires_grad_(True)
        value = total_variation(pixels, smoothing, COLOUR) + BOX * _outside(pixels)
        (slope,) = torch.autograd.grad(value, pixels)
        return float(value.detach()), basis.T @ slope.flatten().numpy()

    with torch.enable_grad():
        for smoothing in SMOOTHING:
            options = {"maxiter": STEPS, "maxcor": 20}
            found = minimize(objective, z, smoothing, "L-BFGS-B", jac=True, options=options)
            z = found.x
    return torch.from_numpy(start + basis @ z).reshape(image.shape).to(image)


def total_variation(image: Tensor, smoothing: float = 0.0, colour: float = 1.0) -> Tensor:
    """Sum over the pixels of the size of the differences to the right and below, all channels.

    Parameters
    ----------
    image : Tensor
        (C, H, W).
    smoothing : float
        Differences below it count by their square.
    colour : float
        Weight of what differs from channel to channel, against what all have in common.

    Returns
    -------
    Tensor
        ().
    """
    right = _squares(image[:, :, 1:] - image[:, :, :-1], colour)
    below = _squares(image[:, 1:] - image[:, :-1], colour)
    squares = torch.nn.functional.pad(right, (0, 1)) + torch.nn.functional.pad(below, (0, 0, 0, 1))
    return (squares + smoothing**2).sqrt().sum()


def _squares(change: Tensor, colour: float) -> Tensor:
    """(C, H, W) → (H, W), squared sizes; what is not common to all channels by `colour`."""
    common = change.mean(dim=0)
    own = (change - common).square().sum(dim=0)
    return len(change) * common.square() + colour**2 * own


def _outside(pixels: Tensor) -> Tensor:
    return ((-pixels).clamp(min=0).square() + (pixels - 1).clamp(min=0).square()).sum()

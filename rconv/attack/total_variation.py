"""What equations and signs leave open in an image, filled by a prior: little total variation.

Only the open directions are moved. What the equations say of the image stays as exact as it is;
what they do not say is guessed, and the result says how much that is.
"""

import numpy as np
import scipy
import torch
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


SECOND = {"smoothing": 1e-2, "colour": 1.0, "power": 1.3}
"""Another prior, which prefers softer edges and does not know that colours change together. How
far its choice lies from the first one estimates the error: 0.03 to 6 times that distance in digits
and photographs of which a tenth to three quarters is open."""


def fill(
    image: Tensor, basis: np.ndarray, value_range: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """The image of the family image + basis · z with the least total variation in the range.

    The image (B, C, H, W) is one image or those of a batch, the basis (B·C·H·W, r) orthonormal.
    Also returns the root mean square to expect of its error, in the unit of the pixels: the
    distance to the choice of a second prior.
    """
    low, high = value_range
    start = image.flatten().cpu().numpy()

    def objective(z: np.ndarray, settings: dict[str, float]) -> tuple[float, np.ndarray]:
        pixels = torch.from_numpy((start + basis @ z - low) / (high - low)).reshape(image.shape)
        pixels.requires_grad_(True)
        value = total_variation(pixels, **settings) + BOX * _outside(pixels)
        (slope,) = torch.autograd.grad(value, pixels)
        return float(value.detach()), basis.T @ slope.flatten().numpy()

    z = np.zeros(basis.shape[1])
    choices = []
    with torch.enable_grad():
        for settings in (*({"smoothing": s, "colour": COLOUR} for s in SMOOTHING), SECOND):
            options = {"maxiter": STEPS, "maxcor": 20}
            known = {"args": settings, "jac": True, "options": options}
            z = scipy.optimize.minimize(objective, z, method="L-BFGS-B", **known).x
            choices.append(z)
    chosen, other = choices[-2:]
    filled = torch.from_numpy(start + basis @ chosen).reshape(image.shape).to(image)
    return filled, torch.tensor(np.linalg.norm(chosen - other) / len(start) ** 0.5).to(image)


def total_variation(
    image: Tensor, smoothing: float = 0.0, colour: float = 1.0, power: float = 1.0
) -> Tensor:
    """Sum over the pixels of the size of the differences to the right and below, all channels.

    Differences of an image (..., C, H, W) below `smoothing` count by their square. What differs
    from channel to channel is weighted by `colour` against what all have in common. `power` is that
    of the sizes; 1 for total variation proper.
    """
    right = _squares(image[..., 1:] - image[..., :-1], colour)
    below = _squares(image[..., 1:, :] - image[..., :-1, :], colour)
    squares = torch.nn.functional.pad(right, (0, 1)) + torch.nn.functional.pad(below, (0, 0, 0, 1))
    return (squares + smoothing**2).pow(power / 2).sum()


def _squares(change: Tensor, colour: float) -> Tensor:
    """(..., C, H, W) → (..., H, W), squared sizes; what channels do not share by `colour`."""
    common = change.mean(dim=-3, keepdim=True)
    own = (change - common).square().sum(dim=-3)
    return change.shape[-3] * common.square().squeeze(-3) + colour**2 * own


def _outside(pixels: Tensor) -> Tensor:
    return ((-pixels).clamp(min=0).square() + (pixels - 1).clamp(min=0).square()).sum()

"""Several candidates for one image: which of them explains the gradients, and has it twins?"""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.report import Reconstruction

EXPLAINS = 1e-8
"""Gradient residual below which a candidate always counts as an explanation."""


def choose(
    candidates: Reconstruction, image: Tensor, value_range: tuple[float, float]
) -> Reconstruction:
    """Keep one candidate per image.

    A head without a bias leaves a sign, and at times a scale, open: each choice gives a
    candidate of its own. Those count that explain the gradients about as well as the best one;
    among them the one that stays closest to the range of pixel values is kept, and the others
    that lie within it are counted as twins.

    Parameters
    ----------
    candidates : Reconstruction
        M of them.
    image : Tensor
        (M,) int64, the image that each belongs to, ascending from 0.
    value_range : tuple[float, float]
        Of the pixels.

    Returns
    -------
    Reconstruction
        With one entry per image.
    """
    count = int(image[-1]) + 1
    if count == len(image):
        return candidates
    low, high = value_range
    x = candidates.images
    outside = (x.clamp(low, high) - x).flatten(1).abs().amax(dim=1)
    chosen, twins = [], []
    for i in range(count):
        own = (image == i).nonzero()[:, 0]
        residual = candidates.gradient_residual[own]
        explains = residual <= (10 * residual.min()).clamp(min=EXPLAINS)
        inside = outside[own] <= 1e-3 * (high - low)
        chosen.append(int(own[torch.where(explains, outside[own], torch.inf).argmin()]))
        twins.append(max(0, int((explains & inside).sum()) - 1))
    result = candidates.select(torch.tensor(chosen, device=x.device))
    return replace(result, twins=torch.tensor(twins, device=x.device))

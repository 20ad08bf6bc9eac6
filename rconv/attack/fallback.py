"""What to answer where the equations leave an image open: never worse than a flat one."""

from dataclasses import replace

import torch

from rconv.attack.report import Reconstruction


def within_range(result: Reconstruction, value_range: tuple[float, float]) -> Reconstruction:
    """Images that equations do not determine, moved into the range of the pixels.

    Where such an image explains the gradients no better than nothing does, a residual of 1 or
    more, it is worth less than a flat image of the middle of the range, which is at least 6 dB
    from every image: then that is the answer, and its expected error is 1.

    Parameters
    ----------
    result : Reconstruction
        With its certificate.
    value_range : tuple of float
        Of the pixels.

    Returns
    -------
    Reconstruction
        Certificate and verdict are those of the images as they were.
    """
    low, high = value_range
    opened = ~result.full_rank
    lost = opened & ~(result.gradient_residual < 1)
    shape = (-1, 1, 1, 1)
    images = torch.where(opened.reshape(shape), result.images.clamp(low, high), result.images)
    images = torch.where(lost.reshape(shape), (low + high) / 2, images)
    error = torch.where(lost, 1.0, result.expected_error)
    return replace(result, images=images, expected_error=error)

"""Photographs of any shape, to try a model on where nobody gives images of its own kind."""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from rconv.data import datasets

MOST = datasets.SIZES["Photos"]
"""Photographs that there are."""


def photographs(input_shape: tuple[int, int, int], count: int) -> tuple[Tensor, str]:
    """The first photographs of scikit-image, in a shape; synthetic images where it is missing.

    They stand for natural images: neighbouring pixels are alike, which is what a prior builds on.
    Noise would make every prior look useless.

    Parameters
    ----------
    input_shape : tuple of int
        (C, H, W). One channel is the mean of red, green and blue; other numbers than three are
        interpolated between these three, as the bands of a multispectral camera.
    count : int
        From 1 to 100; the first ten are different photographs, the others parts of them.

    Returns
    -------
    Tensor
        (count, C, H, W), float64, values in [0, 1].
    str
        What they are, in words.

    Raises
    ------
    ValueError
        If there are not as many photographs.
    """
    if not isinstance(count, int) or not 1 <= count <= MOST:
        raise ValueError(f"{count!r} photographs are not to be had: ask for 1 to {MOST}")
    channels, height, width = input_shape
    if not (find_spec("skimage") and find_spec("PIL")):
        images = torch.stack([dead_leaves(input_shape, seed) for seed in range(count)])
        shape = f"{channels} × {height} × {width}"
        return images, f"synthetic images ({shape}; 'rconv[images]' brings photographs)"
    side = max(height, width)
    images = datasets.load("Photos", range(count), side=side).images
    top, left = (side - height) // 2, (side - width) // 2
    images = images[:, :, top : top + height, left : left + width]
    kind = f"photographs of scikit-image ({channels} × {height} × {width}"
    if channels == 3:
        return images, f"{kind})"
    if channels == 1:
        return images.mean(dim=1, keepdim=True), f"{kind}, grey)"
    spectra = images.flatten(2).transpose(1, 2)  # (N, pixel, red-green-blue)
    spectra = nn.functional.interpolate(spectra, channels, mode="linear", align_corners=True)
    images = spectra.transpose(1, 2).reshape(-1, *input_shape)
    return images, f"{kind}, channels interpolated between red, green and blue)"


def dead_leaves(input_shape: tuple[int, int, int], seed: int, leaves: int = 400) -> Tensor:
    """A synthetic image whose statistics resemble those of photographs.

    Discs of random places and colours, the later ones on top, the density of whose radii falls
    with their third power (Lee, Mumford and Huang, 2001).

    Parameters
    ----------
    input_shape : tuple of int
        (C, H, W).
    seed : int
        Of the generator.
    leaves : int
        Number of discs.

    Returns
    -------
    Tensor
        (C, H, W), float64, values in [0, 1].
    """
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(seed)
    u, y, x = torch.rand(3, leaves, generator=generator, dtype=torch.float64)
    colours = torch.rand(leaves, channels, 1, generator=generator, dtype=torch.float64)
    least, most = max(height, width) / 20, max(height, width) / 2
    radii = (u / least**2 + (1 - u) / most**2).rsqrt()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    image = torch.full(input_shape, 0.5, dtype=torch.float64)
    for radius, top, left, colour in zip(radii, y * height, x * width, colours, strict=True):
        image[:, (rows - top) ** 2 + (columns - left) ** 2 <= radius**2] = colour
    return image

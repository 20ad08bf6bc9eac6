"""Photographs of any shape, to try a model on where nobody gives images of its own kind."""

from torch import Tensor, nn

from rconv.data import datasets

MOST = datasets.SIZES["Photos"]
"""Photographs that there are."""


def photographs(input_shape: tuple[int, int, int], count: int) -> tuple[Tensor, str]:
    """The first photographs of scikit-image, in a shape.

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

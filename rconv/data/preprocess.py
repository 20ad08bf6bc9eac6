"""From a raw image to the square that a network takes."""

import numpy as np

from rconv.extras import extra


def preprocess(image: np.ndarray, side: int = 32) -> np.ndarray:
    """Resize the shorter side to `side` and cut the central square, on 8-bit values.

    Bilinear with antialiasing, as torchvision's ``Resize(side)`` and ``CenterCrop(side)`` do on
    PIL images, to the last bit.

    Parameters
    ----------
    image : ndarray, uint8
        Axes (row, column) if grey or (row, column, channel).
    side : int
        Rows and columns of the result.

    Returns
    -------
    ndarray, uint8
        Axes (row, column, channel), with one channel if grey.
    """
    with extra():
        from PIL import Image
    height, width = image.shape[:2]
    shorter = min(height, width)
    size = int(side * width / shorter), int(side * height / shorter)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in size)
    square = np.asarray(picture.crop((left, top, left + side, top + side)))
    return square.reshape(side, side, -1)

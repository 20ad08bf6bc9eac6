"""Images that installed packages carry in their own files: no network, no download."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rconv.data import DatasetError
from rconv.extras import extra, remedy

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "camera.png",
    "coins.png",
    "moon.png",
)
"""The photographs inside scikit-image; a photograph's place in this list is its label."""


def embedded(name: str, index: int) -> tuple[np.ndarray, int]:
    """Return one raw image of Photos or Digits and its label.

    Photos: photograph ``index % 10``, crop ``index // 10``. Crop 0 is the whole photograph, of
    which the preprocessing keeps the central square; crops 1 to 9 are squares of half its shorter
    side, on a 3 × 3 grid from the top left to the bottom right corner, row by row.

    Parameters
    ----------
    name : str
        Photos or Digits.
    index : int
        From 0 to 99, or to 1796.

    Returns
    -------
    image : ndarray, uint8
        Axes (row, column, channel) for Photos, (8 rows, 8 columns) for Digits.
    label : int
        The photograph's number, or the digit.

    Raises
    ------
    DatasetError
        If the package is not installed, or without its data files.
    """
    if name == "Digits":
        images, labels = _digits()
        return images[index], int(labels[index])
    crop, label = divmod(index, len(PHOTOS))
    photo = _photo(label)
    if crop:
        half = min(photo.shape[:2]) // 2
        row, column = divmod(crop - 1, 3)
        top, left = row * (photo.shape[0] - half) // 2, column * (photo.shape[1] - half) // 2
        photo = photo[top : top + half, left : left + half]
    return photo, label


@lru_cache
def _photo(label: int) -> np.ndarray:
    path = _package_file("skimage", "data", PHOTOS[label])
    with extra():
        from PIL import Image
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@lru_cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    rows = np.loadtxt(_package_file("sklearn", "datasets", "data", "digits.csv.gz"), delimiter=",")
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8)  # published as 0 to 16
    return images.reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def _package_file(package: str, *parts: str) -> Path:
    """Find a data file of a package without importing the package, which would take seconds."""
    found = find_spec(package)
    if found is None:
        raise DatasetError(remedy(package))
    path = Path(found.submodule_search_locations[0], *parts)
    if not path.is_file():
        raise DatasetError(f"{path} is missing: install {package} again, with its data files")
    return path

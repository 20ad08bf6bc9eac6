"""Images to attack: the paper's three datasets, and two that need no network."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from os import PathLike

import numpy as np
import torch

from rconv.data import CHANNELS, CLASSES, DEFAULT, SIZES, TRAIN_SIZES, DatasetError, parse_indices
from rconv.data.sources import data_folder, embedded, read, write_snapshot
from rconv.extras import extra

__all__ = [
    "CHANNELS",
    "CLASSES",
    "DEFAULT",
    "SIZES",
    "DatasetError",
    "Images",
    "dead_leaves",
    "load",
    "parse_indices",
    "photographs",
    "preprocess",
    "write_snapshot",
]


@dataclass(frozen=True, eq=False)
class Images:
    """Preprocessed images of one dataset.

    Parameters
    ----------
    images : Tensor, float64
        Axes (image N, channel C, row, column), values in [0, 1], channels in RGB order.
    labels : Tensor, int64
        Axis (image N): the true class, from 0 to ``CLASSES[name] - 1``.
    indices : Tensor, int64
        Axis (image N): each image's position in the dataset.
    name : str
        The dataset, a key of `CLASSES`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, which: slice) -> "Images":
        """Some of the images, in their order."""
        return replace(
            self, images=self.images[which], labels=self.labels[which], indices=self.indices[which]
        )


def load(
    name: str = DEFAULT,
    indices: Iterable[int] | None = None,
    data_dir: str | PathLike | None = None,
    side: int = 32,
    download: bool = True,
) -> Images:
    """Load training images, resized and centre-cropped to a square with values in [0, 1].

    MNIST, CIFAR10 and CIFAR100 come from a snapshot ``<NAME>-train-first<N>.npz`` where one holds
    every requested image, and otherwise from torchvision's training set, which is downloaded on
    first use and checked. Photos and Digits come with scikit-image and scikit-learn. The
    preprocessing is the paper's: its 8-bit values over 255, not normalised any further.

    Parameters
    ----------
    indices : iterable of int, optional
        Positions in the dataset, from 0, in any order, which the images keep; ``None`` means all
        ``SIZES[name]`` images (a smaller snapshot never passes for the whole).
    data_dir : str or PathLike, optional
        The folder with the raw data. ``None``: the folder that the environment variable RCONV_DATA
        names, else ``rconv`` in the user's cache folder.
    side : int
        Rows and columns of the images.
    download : bool
        Whether a missing dataset may be downloaded into that folder.

    Raises
    ------
    DatasetError
        If the name is unknown, an index out of range, the data damaged, or missing and not to be
        had. The message is one line with the reason and the remedy.
    """
    if name not in CLASSES:
        raise DatasetError(f"there is no dataset {name!r}: choose {', '.join(CLASSES)}")
    if not isinstance(side, int) or side < 1:
        raise DatasetError(f"the side is {side}: give a positive whole number of pixels")
    wanted = _check_indices(name, range(SIZES[name]) if indices is None else indices)
    if name in TRAIN_SIZES:
        data, targets = read(name, max(wanted) + 1, data_folder(data_dir), download)
        pairs = [(data[index], targets[index]) for index in wanted]
    else:
        pairs = [embedded(name, index) for index in wanted]
    pixels = torch.from_numpy(np.stack([preprocess(image, side) for image, _ in pairs]))
    return Images(
        images=pixels.permute(0, 3, 1, 2).contiguous().double() / 255,
        labels=torch.tensor([int(label) for _, label in pairs]),
        indices=torch.tensor(wanted),
        name=name,
    )


def photographs(input_shape: tuple[int, int, int], count: int) -> tuple[torch.Tensor, str]:
    """The first photographs of scikit-image in any shape; synthetic images where it is missing.

    They stand for natural images: neighbouring pixels are alike, which is what a prior builds on.
    Noise would make every prior look useless. Returns the images (count, C, H, W), float64, values
    in [0, 1], and a description of them.

    Parameters
    ----------
    input_shape : tuple of int
        (C, H, W). One channel is the mean of red, green and blue; other numbers than three are
        interpolated between these three, as the bands of a multispectral camera.
    count : int
        From 1 to 100; the first ten are different photographs, the others parts of them.
    """
    most = SIZES["Photos"]
    if not isinstance(count, int) or not 1 <= count <= most:
        raise ValueError(f"{count!r} photographs are not to be had: ask for 1 to {most}")
    channels, height, width = input_shape
    if not (find_spec("skimage") and find_spec("PIL")):
        images = torch.stack([dead_leaves(input_shape, seed) for seed in range(count)])
        shape = f"{channels} × {height} × {width}"
        return images, f"synthetic images ({shape}; 'rconv[images]' brings photographs)"
    side = max(height, width)
    images = load("Photos", range(count), side=side).images
    top, left = (side - height) // 2, (side - width) // 2
    images = images[:, :, top : top + height, left : left + width]
    kind = f"photographs of scikit-image ({channels} × {height} × {width}"
    if channels == 3:
        return images, f"{kind})"
    if channels == 1:
        return images.mean(dim=1, keepdim=True), f"{kind}, grey)"
    spectra = images.flatten(2).transpose(1, 2)  # (N, pixel, red-green-blue)
    spectra = torch.nn.functional.interpolate(spectra, channels, mode="linear", align_corners=True)
    images = spectra.transpose(1, 2).reshape(-1, *input_shape)
    return images, f"{kind}, channels interpolated between red, green and blue)"


LEAVES = 400
"""Discs of a synthetic image."""


def dead_leaves(input_shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """A synthetic image whose statistics resemble those of photographs.

    Discs of random places and colours, the later ones on top, the density of whose radii falls with
    their third power (Lee, Mumford and Huang, 2001). Returns (C, H, W), float64, values in [0, 1].
    """
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(seed)
    u, y, x = torch.rand(3, LEAVES, generator=generator, dtype=torch.float64)
    colours = torch.rand(LEAVES, channels, 1, generator=generator, dtype=torch.float64)
    least, most = max(height, width) / 20, max(height, width) / 2
    radii = (u / least**2 + (1 - u) / most**2).rsqrt()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    image = torch.full(input_shape, 0.5, dtype=torch.float64)
    for radius, top, left, colour in zip(radii, y * height, x * width, colours, strict=True):
        image[:, (rows - top) ** 2 + (columns - left) ** 2 <= radius**2] = colour
    return image


def _check_indices(name: str, indices: Iterable[int]) -> list[int]:
    """Return the indices as whole numbers, all of them in the dataset."""
    try:
        wanted = [operator.index(index) for index in indices]
    except TypeError:
        raise DatasetError(
            "indices must be whole numbers, for instance [92] or range(100)"
        ) from None
    if not wanted:
        raise DatasetError("no index is given: name at least one image")
    for index in wanted:
        if not 0 <= index < SIZES[name]:
            raise DatasetError(f"{name} has no image {index}: choose 0 to {SIZES[name] - 1}")
    return wanted


def preprocess(image: np.ndarray, side: int = 32) -> np.ndarray:
    """Resize the shorter side to `side` and cut the central square, on 8-bit values.

    Bilinear with antialiasing, as torchvision's ``Resize(side)`` and ``CenterCrop(side)`` do on PIL
    images, to the last bit. Input axes are (row, column) for grey and (row, column, channel) for
    colour images; the result is (side, side, channel), with one channel for grey.
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

"""Where raw images come from: a snapshot, torchvision's training set, or installed packages."""

import os
import re
import socket
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rconv.data import CLASSES, TRAIN_SIZES, DatasetError
from rconv.extras import extra, remedy
from rconv.files import claimed, output_file, replacing

_SHAPES = {"MNIST": (28, 28), "CIFAR10": (32, 32, 3), "CIFAR100": (32, 32, 3)}
_FOLDERS = {"MNIST": "MNIST", "CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}
_STALLED = 30.0  # seconds without a byte after which a download is given up


def data_folder(data_dir: str | os.PathLike | None = None) -> Path:
    """Find the folder of the raw data.

    Without `data_dir`, the environment variable RCONV_DATA names it; otherwise it is ``rconv`` in
    the user's cache folder. A ~ stands for the user's home. The folder need not exist.
    """
    if data_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        data_dir = os.environ.get("RCONV_DATA") or Path(cache) / "rconv"
    if not os.fspath(data_dir):
        raise DatasetError("the path of the data folder is empty: name one, or leave it out")
    try:
        return Path(data_dir).expanduser()
    except RuntimeError:
        raise DatasetError(f"{data_dir}: there is no such user; write ./~ for a folder ~") from None


def read(name: str, count: int, folder: Path, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read at least the first `count` raw training images of MNIST, CIFAR10 or CIFAR100.

    The folder holds a snapshot or torchvision's files; missing ones are downloaded if `download` is
    set. Returns data, uint8, with axes (image, row, column) for MNIST and (image, row, column,
    channel) for CIFAR, in RGB, and classes, int64, with axis (image). Raises DatasetError if the
    data is damaged, or missing and cannot be downloaded.
    """
    snapshots = _snapshots(name, folder)
    for held in sorted(snapshots):
        if held >= count:
            return _read_snapshot(name, held, snapshots[held])
    try:
        data, targets = _read_torchvision(name, folder, download)
    except DatasetError as error:
        if not snapshots:
            raise
        largest = snapshots[max(snapshots)]
        raise DatasetError(f"{largest} ends at image {max(snapshots) - 1}, and {error}") from error
    if len(data) < count:
        raise DatasetError(f"{name} in {folder} has no image {count - 1}: it has {len(data)}")
    return data, targets


def write_snapshot(
    name: str,
    count: int,
    data_dir: str | os.PathLike | None = None,
    out_dir: str | os.PathLike | None = None,
) -> Path:
    """Write the first `count` raw training images to ``<NAME>-train-first<count>.npz``.

    A snapshot opens in milliseconds where the full dataset takes seconds. It holds ``data`` and
    ``targets``, shaped as `read` returns them and named as torchvision's dataset objects do.
    Without `out_dir` it goes to the data folder, where `load` finds it; the file is whole or
    absent.
    """
    if name not in TRAIN_SIZES:
        raise DatasetError(f"no snapshot is made of {name!r}: choose {', '.join(TRAIN_SIZES)}")
    if not 1 <= count <= TRAIN_SIZES[name]:
        raise DatasetError(f"{name} has no first {count} images: choose 1 to {TRAIN_SIZES[name]}")
    folder = data_folder(data_dir if out_dir is None else out_dir)
    path = folder / f"{name}-train-first{count}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        output_file(path)
        with claimed([path]):
            data, targets = read(name, count, data_folder(data_dir), download=True)
            with replacing(path) as file:
                np.savez_compressed(file, data=data[:count], targets=targets[:count])
    except OSError as error:
        raise DatasetError(f"{path} cannot be written ({error.strerror})") from error
    return path


def _snapshots(name: str, folder: Path) -> dict[int, Path]:
    """Map the number of images in each snapshot of the folder to its file."""
    pattern = re.compile(rf"{name}-train-first([0-9]+)\.npz")
    matches = {path: pattern.fullmatch(path.name) for path in folder.glob("*.npz")}
    return {int(match[1]): path for path, match in matches.items() if match}


def _read_snapshot(name: str, count: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            data, targets = file["data"], file["targets"]
        _validate(name, data, targets)
        if len(data) != count:
            raise ValueError(f"it holds {len(data)} images")
    except Exception as error:  # a damaged archive raises whatever its parsers meet first
        raise DatasetError(
            f"{path} cannot be read ({_reason_of(error)}): delete it or write it anew"
        ) from error
    return data, targets


def _read_torchvision(name: str, folder: Path, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """All images of a training set as torchvision keeps it, which may download it; as `read`."""
    home = folder / _FOLDERS[name]
    if not os.path.exists(home):
        _download(name, home, download)
    with extra():
        from torchvision import datasets  # takes seconds to import

    try:
        found = getattr(datasets, name)(folder, train=True, download=False)
        data, targets = np.asarray(found.data), np.asarray(found.targets, dtype=np.int64)
        _validate(name, data, targets)
    except Exception as error:  # a damaged file raises whatever its parsers meet first
        raise DatasetError(
            f"{home} is damaged or incomplete ({_reason_of(error)}): "
            "delete that folder and it is downloaded again"
        ) from error
    return data, targets


def _download(name: str, home: Path, allowed: bool) -> None:
    """Let torchvision download a dataset to one side; move it to `home` once it is verified."""
    remedy = (
        "name a folder that holds it with --data-dir or RCONV_DATA, "
        "or use Photos or Digits, which need no network"
    )
    if not allowed:
        raise DatasetError(f"{name} is not in {home.parent} and was not to be downloaded: {remedy}")
    with extra():
        from torchvision import datasets
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=home.parent) as aside:
            getattr(datasets, name)(aside, train=True, download=True)
            if not home.exists():  # another process may have been faster
                os.rename(Path(aside) / home.name, home)
    except Exception as error:  # network, disk, permissions, archive: the remedy is the same
        raise DatasetError(
            f"{name} is not in {home.parent} and cannot be downloaded "
            f"({_reason_of(error)}): {remedy}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _validate(name: str, data: np.ndarray, targets: np.ndarray) -> None:
    """Raise ValueError where data and targets are not what the dataset's name promises."""
    if data.dtype != np.uint8 or data.shape[1:] != _SHAPES[name]:
        raise ValueError(f"data is {data.dtype} with shape {data.shape}")
    if targets.dtype != np.int64 or targets.shape != data.shape[:1]:
        raise ValueError(f"targets is {targets.dtype} with shape {targets.shape}")
    if len(targets) == 0 or targets.min() < 0 or targets.max() >= CLASSES[name]:
        raise ValueError(f"targets are not classes from 0 to {CLASSES[name] - 1}")


def _reason_of(error: Exception) -> str:
    """Return the last line of an exception's message, or the exception's name."""
    lines = str(error).split(" You can use download=True")[0].strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


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
    side, on a 3 × 3 grid from the top left to the bottom right corner, row by row. Returns the
    image, uint8, with axes (row, column, channel) for Photos and (8, 8) for Digits, and its label:
    the photograph's number, or the digit. Raises DatasetError if the package is not installed.
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

"""Where the raw images of MNIST and CIFAR come from: a snapshot, or torchvision's training set."""

import os
import re
from pathlib import Path

import numpy as np

from rconv.data.errors import DatasetError
from rconv.data.names import TRAIN_SIZES
from rconv.data.raw import reason_of, validate
from rconv.data.torchvision_files import read_torchvision
from rconv.files import claimed, output_file, replacing


def data_folder(data_dir: str | os.PathLike | None = None) -> Path:
    """Find the folder of the raw data.

    Parameters
    ----------
    data_dir : str or PathLike, optional
        The folder, ~ for the user's own. Without it the environment variable RCONV_DATA names
        it, else it is ``rconv`` in the user's cache folder.

    Returns
    -------
    Path
        The folder, which need not exist.

    Raises
    ------
    DatasetError
        If the path is empty, or the home of a user that there is not.
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

    Parameters
    ----------
    name : str
        The dataset.
    count : int
        How many images are needed, from the first.
    folder : Path
        Where a snapshot or torchvision's files lie, or are downloaded to.
    download : bool
        Whether missing data may be downloaded.

    Returns
    -------
    data : ndarray, uint8
        Axes (image, row, column) for MNIST, (image, row, column, channel) for CIFAR, in RGB.
    targets : ndarray, int64
        Axis (image): the class.

    Raises
    ------
    DatasetError
        If the data is damaged, or missing and cannot be downloaded.
    """
    snapshots = _snapshots(name, folder)
    for held in sorted(snapshots):
        if held >= count:
            return _read_snapshot(name, held, snapshots[held])
    try:
        data, targets = read_torchvision(name, folder, download)
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

    Parameters
    ----------
    name : str
        MNIST, CIFAR10 or CIFAR100.
    count : int
        How many images, from the first.
    data_dir : str or PathLike, optional
        Where the raw data is, as in `load`.
    out_dir : str or PathLike, optional
        Where the snapshot goes; by default the data folder, where `load` finds it.

    Returns
    -------
    Path
        The file, which is whole or absent.

    Raises
    ------
    DatasetError
        As `load` does, and if the file cannot be written.
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
        validate(name, data, targets)
        if len(data) != count:
            raise ValueError(f"it holds {len(data)} images")
    except Exception as error:  # a damaged archive raises whatever its parsers meet first
        raise DatasetError(
            f"{path} cannot be read ({reason_of(error)}): delete it or write it anew"
        ) from error
    return data, targets

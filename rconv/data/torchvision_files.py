"""MNIST and CIFAR as torchvision downloads and keeps them."""

import os
import socket
import tempfile
from pathlib import Path

import numpy as np

from rconv.data.errors import DatasetError
from rconv.data.raw import reason_of, validate
from rconv.extras import extra

_FOLDERS = {"MNIST": "MNIST", "CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}
_STALLED = 30.0  # seconds without a byte after which a download is given up


def read_torchvision(name: str, folder: Path, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read a training set as torchvision keeps it, and let it download what is missing.

    Parameters
    ----------
    name : str
        MNIST, CIFAR10 or CIFAR100.
    folder : Path
        Where its files lie, or are downloaded to.
    download : bool
        Whether it may be downloaded.

    Returns
    -------
    data, targets : ndarray
        As `rconv.data.sources.read` returns them, of all images.

    Raises
    ------
    DatasetError
        If the files are damaged, or missing and cannot be downloaded.
    """
    home = folder / _FOLDERS[name]
    if not os.path.exists(home):
        _download(name, home, download)
    with extra():
        from torchvision import datasets  # takes seconds to import

    try:
        found = getattr(datasets, name)(folder, train=True, download=False)
        data, targets = np.asarray(found.data), np.asarray(found.targets, dtype=np.int64)
        validate(name, data, targets)
    except Exception as error:  # a damaged file raises whatever its parsers meet first
        raise DatasetError(
            f"{home} is damaged or incomplete ({reason_of(error)}): "
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
            f"({reason_of(error)}): {remedy}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)

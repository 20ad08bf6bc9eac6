"""What the raw images of MNIST and CIFAR look like."""

import numpy as np

_SHAPES = {"MNIST": (28, 28), "CIFAR10": (32, 32, 3), "CIFAR100": (32, 32, 3)}
_LABELS = {"MNIST": 10, "CIFAR10": 10, "CIFAR100": 100}


def validate(name: str, data: np.ndarray, targets: np.ndarray) -> None:
    """Check that data and targets are what the dataset's name promises.

    Parameters
    ----------
    name : str
        MNIST, CIFAR10 or CIFAR100.
    data : ndarray
        As `rconv.data.sources.read` returns it.
    targets : ndarray
        Likewise.

    Raises
    ------
    ValueError
        If they are not.
    """
    if data.dtype != np.uint8 or data.shape[1:] != _SHAPES[name]:
        raise ValueError(f"data is {data.dtype} with shape {data.shape}")
    if targets.dtype != np.int64 or targets.shape != data.shape[:1]:
        raise ValueError(f"targets is {targets.dtype} with shape {targets.shape}")
    if len(targets) == 0 or targets.min() < 0 or targets.max() >= _LABELS[name]:
        raise ValueError(f"targets are not classes from 0 to {_LABELS[name] - 1}")


def reason_of(error: Exception) -> str:
    """Return the last line of an exception's message, or the exception's name."""
    lines = str(error).split(" You can use download=True")[0].strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__

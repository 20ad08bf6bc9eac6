"""Images to attack: the paper's datasets, and two that need no network.

Knows neither models nor attacks. What the command line needs to parse its arguments stands here,
because it imports nothing heavy; images come from `rconv.data.datasets`.
"""

import re

CLASSES = {"MNIST": 10, "CIFAR10": 10, "CIFAR100": 100, "Photos": 10, "Digits": 10}
CHANNELS = {"MNIST": 1, "CIFAR10": 3, "CIFAR100": 3, "Photos": 3, "Digits": 1}
TRAIN_SIZES = {"MNIST": 60_000, "CIFAR10": 50_000, "CIFAR100": 50_000}
SIZES = {**TRAIN_SIZES, "Photos": 100, "Digits": 1797}
DEFAULT = "Photos"
"""The dataset that is used where none is named: it needs no network."""


class DatasetError(ValueError):
    """A dataset cannot be had. The message is one line: what is wrong, and what would help."""


def parse_indices(text: str) -> list[int]:
    """Read image numbers such as ``92``, ``3,5,8``, ``0:100``, ``0:10:2`` or ``0:3,7``.

    A range is Python's ``start:stop:step``: the stop is not part of it. Raises ValueError if the
    text is malformed, names no index, or one that is negative or has more than six digits (no
    dataset here has as many images).
    """
    indices: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"[0-9]{1,6}(:[0-9]{1,6}){0,2}", part.strip()):
            raise ValueError(f"indices {text!r}: write 92, a list 3,5,8 or a range 0:100 or 0:10:2")
        first, *rest = (int(number) for number in part.split(":"))
        if rest[1:] == [0]:
            raise ValueError(f"indices {text!r}: the step of a range is at least 1")
        chosen = range(first, *rest) if rest else range(first, first + 1)
        if not chosen:
            raise ValueError(f"indices {text!r}: the range {part.strip()} is empty")
        indices += chosen
    return indices

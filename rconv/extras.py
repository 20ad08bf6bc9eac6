"""Packages that `pip install rconv` leaves out, and the extra that brings each.

They are imported where they are used. Attack, audit and command line need none of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "PIL": "images",
    "skimage": "images",
    "sklearn": "images",
    "torchvision": "images",
    "matplotlib": "figures",
    "IPython": "book",
    "dp_accounting": "book",
    "flwr": "adapters",
    "opacus": "adapters",
}
"""Top-level module → extra."""


def remedy(name: str) -> str:
    """What to do about a module of `EXTRAS` that is not installed."""
    return f"{name} is not installed: pip install 'rconv[{EXTRAS[name]}]' brings it"


@contextmanager
def extra() -> Iterator[None]:
    """Imports in the block name the extra where a module of `EXTRAS` is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        raise ModuleNotFoundError(remedy(name), name=name) from None

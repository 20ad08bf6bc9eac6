"""The texts of arguments as values; `argparse.ArgumentTypeError` where they are none.

What a value means is not known here.
"""

import argparse
import re

from rconv.data import SIZES

FORM = "path/to/file.py:Net or package.module:function"
"""A model of the user's own, as --model takes it."""

LARGEST = 2**26
"""Numbers in one image: half a GiB in float64, and an attack holds dozens of such maps."""

MOST = SIZES["Photos"]
"""Photographs that there are."""


def path(text: str) -> str:
    """What is given as a path: not empty."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def seed(text: str) -> int:
    """Seed of PyTorch's generator, which takes 64 bits."""
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def batch(text: str) -> int | None:
    """Images of one step; None for auto."""
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1, or auto, got {text!r}")
    return int(text)


def trials(text: str) -> int:
    """Photographs to try."""
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 to {MOST}, got {text!r}")
    return int(text)


def shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) of one image."""
    if not re.fullmatch("[0-9]{1,5}(,[0-9]{1,5}){2}", text) or 0 in map(int, text.split(",")):
        raise argparse.ArgumentTypeError(f"takes three numbers such as 3,64,64, got {text!r}")
    channels, height, width = map(int, text.split(","))
    if channels * height * width > LARGEST:
        raise argparse.ArgumentTypeError(
            f"{text} is {channels * height * width:,} numbers in one image: at most {LARGEST:,}"
        )
    return channels, height, width


def filters(text: str) -> list[int]:
    """Filters of each convolution."""
    numbers = text.split(",")
    if not all(re.fullmatch("[0-9]{1,6}", number.strip()) for number in numbers):
        raise argparse.ArgumentTypeError(f"takes numbers such as 16,24,12,12, got {text!r}")
    return [int(number) for number in numbers]

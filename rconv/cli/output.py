"""Files that a command writes, checked before the work; records and pictures as images finish."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rconv.cli.terminal import say
from rconv.files import output_file
from rconv.lab.records import Record, summary, write_json

WAIT = 2.0
"""Seconds between two writings, at least."""

SHARE = 10
"""Between two writings, this many times as long as the last one took is spent on the attack."""


class ResultWriter:
    """Writes finished results: records, and a picture, whose suffix is checked at once."""

    def __init__(self, json: str | None, picture: str | None):
        self.json, self.picture = json, picture
        self.figures = None
        if picture is not None:
            from rconv.show import figures  # matplotlib, which only a picture needs

            figures.picture_format(picture)
            self.figures = figures
        self.clear()
        self._last, self._took = time.monotonic(), 0.0

    def clear(self) -> None:
        """Forget the parts, before the whole is added."""
        self.records: list[Record] = []
        self._images: list[Tensor] = []
        self._originals: list[Tensor] = []

    def add(self, records: Sequence[Record], images: Tensor, originals: Tensor | None) -> None:
        """Take in finished images (N, C, H, W), and write all if the last writing was long ago."""
        self.records += records
        self._images.append(images.cpu())
        if originals is not None:
            self._originals.append(originals)
        if time.monotonic() - self._last > max(WAIT, SHARE * self._took):
            self._write()

    def close(self) -> None:
        """Write all, and print the summary, which a full disk does not prevent."""
        if not self.records:
            return
        try:
            self._write()
        finally:
            say(summary(self.records))

    def _write(self) -> None:
        start = time.monotonic()
        if self.json is not None:
            write_json(self.json, self.records)
        if self.picture is not None:
            images = torch.cat(self._images)
            if self._originals:
                picture = self.figures.comparison(torch.cat(self._originals), images)
            else:
                picture = self.figures.gallery(images)
            self.figures.save(picture, self.picture)
        self._last = time.monotonic()
        self._took = self._last - start


def check_files(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Refuse outputs that cannot be written, and those that would replace one another.

    Both map options to files, and to None where an option is not given. Raises OSError if a file
    cannot be written, and ValueError if an output is the same file as another output, an input, or
    standard output, whatever the two are called.
    """
    taken = {o: Path(os.path.realpath(path)) for o, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        target = output_file(path)
        for other, file in taken.items():
            if _same(target, file):
                raise ValueError(f"{option} and {other} are one file, {path}: name two")
        if _is_standard_output(target):
            raise ValueError(f"{option}: {path} is where standard output goes: name another file")
        taken[option] = target


def _same(a: Path, b: Path) -> bool:
    return a == b or (a.exists() and b.exists() and a.samefile(b))


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # no such file yet, or an output that is no file
        return False

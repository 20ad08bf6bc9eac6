"""Records and pictures of the images that are finished: written as they come, and at the end."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from rconv.cli.terminal import say
from rconv.lab.records import Record, summary, write_json

WAIT = 2.0
"""Seconds between two writings, at least."""

SHARE = 10
"""Between two writings, this many times as long as the last one took is spent on the attack."""


class Kept:
    """What an attack has finished.

    Parameters
    ----------
    json : str or None
        File of the records.
    picture : str or None
        File of the picture; refused at once if its suffix is unknown.
    """

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

    @property
    def count(self) -> int:
        """Images that are finished."""
        return len(self.records)

    def add(self, records: Sequence[Record], images: Tensor, originals: Tensor | None) -> None:
        """Take in finished images, and write all of them if the last writing was long ago.

        Parameters
        ----------
        records : sequence of dict
            One per image.
        images : Tensor
            (N, C, H, W), the reconstructions.
        originals : Tensor or None
            (N, C, H, W), if they are known.
        """
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

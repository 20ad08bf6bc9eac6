"""Write files that are either whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place once the block has ended well.

    Parameters
    ----------
    path
        The file to write. Its folder must exist. A file already there stays as it was until
        the new one is complete, and for good if the block raises.

    Yields
    ------
    file
        The temporary file, open for writing bytes.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written to, or the disk is full.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

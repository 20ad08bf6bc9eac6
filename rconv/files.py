"""Write files that are either whole or absent."""

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def output_file(path: str | os.PathLike) -> Path:
    """Find the file that writing to a path makes or replaces, and refuse what is no file.

    A link is followed: the file that it points to is replaced, and the link stays. Pipes,
    sockets and devices such as /dev/null or /dev/stdout are refused, because a file that takes
    their place is no longer what others open under this name.

    Parameters
    ----------
    path : str or PathLike
        Where something is to be written.

    Returns
    -------
    Path
        The file, without links.

    Raises
    ------
    OSError
        If the path is empty, a folder, or no regular file; if its folder is missing or cannot be
        written to; if its links lead in a circle.
    """
    name = os.fspath(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "an empty path names no file", name)
    with suppress(FileNotFoundError):
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder, name a file in it", name)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is a pipe, a socket or a device, not a file", name)
    target = Path(os.path.realpath(name))
    if not target.parent.is_dir():
        reason = "the folder does not exist, create it first"
        raise FileNotFoundError(errno.ENOENT, reason, name)
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        reason = f"the folder cannot be written to ({error.strerror})"
        raise PermissionError(errno.EACCES, reason, name) from None
    return target


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place once the block has ended well.

    Parameters
    ----------
    path : str or PathLike
        The file to write, as `output_file` takes it. A file already there stays as it was until
        the new one is complete, and for good if the block raises; the new one has its rights.

    Yields
    ------
    BinaryIO
        The temporary file, open for writing bytes.

    Raises
    ------
    OSError
        As `output_file`, and if the disk is full.
    """
    target = output_file(path)
    part = target.with_name(f".rconv-{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # some file systems say only now that they are full
        with suppress(FileNotFoundError):
            shutil.copymode(target, part)
        os.replace(part, target)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk names no file
            error.filename = os.fspath(path)
        raise
    finally:
        part.unlink(missing_ok=True)

"""Write files that are either whole or absent, and that one process writes at a time."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows, where two processes are not kept apart
    fcntl = None


def output_file(path: str | os.PathLike) -> Path:
    """Find the file that writing to a path makes or replaces, and refuse what is no file.

    A link is followed: the file that it points to is replaced, and the link stays. Pipes, sockets
    and devices such as /dev/null or /dev/stdout are refused, because a file that takes their place
    is no longer what others open under this name. Raises OSError if the path is empty, a folder, or
    no regular file, if its folder is missing or cannot be written to, or if its links form a loop.
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

    A file already there stays as it was until the new one is complete, and for good if the block
    raises; the new one has its permissions. Raises OSError as `output_file` does, and if the disk
    is full.
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


@contextmanager
def claimed(paths: Iterable[str | os.PathLike]) -> Iterator[None]:
    """Keep other processes from writing the same files, until the block has ended.

    A hidden file beside each path is locked, and deleted at the end. The system drops the lock with
    the process, so that one that was killed leaves a small file and no lock. Raises OSError as
    `output_file` does, and if another process is writing one of the files.
    """
    with ExitStack() as held:
        for path in paths:
            held.enter_context(_locked(path))
        yield


@contextmanager
def _locked(path: str | os.PathLike) -> Iterator[None]:
    target = output_file(path)
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    beside = target.with_name(f".rconv-{digest}.lock")
    descriptor = None if fcntl is None else _lock(beside, path)
    try:
        yield
    finally:
        if descriptor is not None:
            beside.unlink(missing_ok=True)
            os.close(descriptor)


def _lock(beside: Path, path: str | os.PathLike) -> int | None:
    """Descriptor of the locked file; None where the file system has no locks."""
    while True:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(beside)):
                return descriptor
        except FileNotFoundError:
            pass  # another process has just ended: its file is deleted, and locked for nobody
        except BlockingIOError:
            os.close(descriptor)
            reason = "another process is writing it, wait for its end or name another file"
            raise OSError(errno.EBUSY, reason, os.fspath(path)) from None
        except OSError:
            beside.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        os.close(descriptor)

"""What a person reads: one line of an error, and text without characters that steer a terminal."""

import os
import sys
from contextlib import suppress


def legible(text: str) -> str:
    """Write what is not to be seen, but steers a terminal, as its escape.

    Parameters
    ----------
    text : str
        May hold the name of a file, which others have chosen.

    Returns
    -------
    str
        The same but for control characters, bytes that are no text, and marks of direction;
        ends of lines stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Print an answer to standard output, and find out now whether it can be read there.

    Parameters
    ----------
    text : str
        One line or more.

    Raises
    ------
    OSError
        If nobody reads, or a disk is full.
    """
    try:
        print(legible(text), flush=True)
    except OSError as error:
        with suppress(OSError, ValueError):  # what is left would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from None


def complain(text: str) -> None:
    """Print one line to standard error, if it is open.

    Parameters
    ----------
    text : str
        What is wrong; ends of lines become spaces.
    """
    if sys.stderr is None:
        return
    with suppress(OSError):  # closed as well: the exit code says it alone
        print("rconv:", *legible(text).split(), file=sys.stderr)


def watched() -> bool:
    """Whether somebody sees a progress bar."""
    return sys.stderr is not None and sys.stderr.isatty()

"""What a person reads at a terminal, and what Ctrl-C does there."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Self


def legible(text: str) -> str:
    """Write control characters, marks of direction and bytes that are no text as their escapes."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Print an answer to standard output; OSError if nobody reads it, or a disk is full."""
    try:
        print(legible(text), flush=True)
    except OSError as error:
        with suppress(OSError, ValueError):  # what is left would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from None


def complain(text: str) -> None:
    """Print one line to standard error, if it is open."""
    if sys.stderr is None:
        return
    with suppress(OSError):  # closed as well: the exit code says it alone
        print("rconv:", *legible(text).split(), file=sys.stderr)


def watched() -> bool:
    """Whether somebody sees a progress bar."""
    return sys.stderr is not None and sys.stderr.isatty()


CODE = 130
"""128 plus the number of SIGINT, as shells have it."""

GRACE = 5.0
"""Seconds after which the process ends without cleaning up: a routine of LAPACK may run for
minutes before Python sees the signal, and a library may swallow the exception."""


class Interrupts:
    """What Ctrl-C does, and whether it was pressed.

    Until `working` is set there is nothing to keep, and the process ends at once: an exception
    inside the import of PyTorch's C++ parts would abort it. Then KeyboardInterrupt is raised, and
    finished results are written. Only in the main thread, which alone receives signals, and where a
    pipe can wake a thread; elsewhere Python's handler stays.
    """

    def __init__(self) -> None:
        self.pressed = self.working = False
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        self._watches = os.name == "posix" and main
        if not self._watches:
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._handler = signal.signal(signal.SIGINT, self._raise)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._hook, sys.unraisablehook = sys.unraisablehook, _silent(sys.unraisablehook)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._watches:
            return
        self._ended.set()
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGINT, self._handler)
        sys.unraisablehook = self._hook
        os.close(self._writer)  # the thread reads the end of the pipe
        self._thread.join()
        os.close(self._reader)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.working:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """In a separate thread, which does not wait for what the main thread computes."""
        while signals := os.read(self._reader, 64):
            if signal.SIGINT in signals:
                self.pressed = True
                if not self._ended.wait(GRACE if self.working else 0):
                    complain("interrupted")
                    with suppress(OSError, ValueError):
                        sys.stdout.flush()
                    os._exit(CODE)


def _silent(hook: Callable) -> Callable:
    """A hook for exceptions that nobody can catch, without those of Ctrl-C."""
    return lambda found: None if found.exc_type is KeyboardInterrupt else hook(found)

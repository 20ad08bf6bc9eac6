"""Ctrl-C: one line and exit code 130, whatever the process is doing."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rconv.cli.terminal import complain

CODE = 130
"""128 plus the number of SIGINT, as shells have it."""

GRACE = 5.0
"""Seconds after which the process ends without cleaning up. An import may swallow the exception,
and a routine of LAPACK may run for minutes before Python sees the signal."""


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Watch for Ctrl-C in a thread that does not wait for what the main thread computes.

    Yields
    ------
    callable
        Whether Ctrl-C was pressed. Always False outside the main thread, which alone receives
        signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed, ended = threading.Event(), threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    hook, sys.unraisablehook = sys.unraisablehook, _silent(sys.unraisablehook)
    watch = threading.Thread(target=_watch, args=(reader, pressed, ended), daemon=True)
    watch.start()
    try:
        yield pressed.is_set
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, handler)
        sys.unraisablehook = hook
        os.close(writer)  # the thread reads the end of the pipe
        watch.join()
        os.close(reader)


def _watch(reader: int, pressed: threading.Event, ended: threading.Event) -> None:
    while signals := os.read(reader, 64):
        if signal.SIGINT in signals:
            pressed.set()
            if not ended.wait(GRACE):
                complain("interrupted")
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                os._exit(CODE)


def _silent(hook: Callable) -> Callable:
    """A hook for exceptions that nobody can catch, without those of Ctrl-C."""
    return lambda found: None if found.exc_type is KeyboardInterrupt else hook(found)

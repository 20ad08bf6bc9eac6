"""The command line from its arguments to its exit code."""

import os
import shlex
import sys
from collections.abc import Sequence

from rconv.cli.terminal import CODE, Interrupts, complain
from rconv.extras import EXTRAS, remedy

DEBUG = "RCONV_DEBUG"
"""Variable of the environment that shows where an unexpected error comes from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    `argv` defaults to the arguments of the process. Returns the exit code: 0; 3 or 4 as `rconv
    audit` answers; 2 for bad input and output that cannot be written, with one line on standard
    error that says why; 1 for a defect of this program; 130 where the user interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv.insert(0, "attack")
    with Interrupts() as interrupts:
        try:
            return _answer(argv, interrupts)
        except KeyboardInterrupt:
            complain("interrupted")
            return CODE
        except Exception as error:
            if interrupts.pressed:  # what an import makes of Ctrl-C
                complain("interrupted")
                return CODE
            return _refuse(error)


def _answer(argv: list[str], interrupts: Interrupts) -> int:
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for what its encoding does not have
    from rconv.cli.arguments import parse  # now that Ctrl-C is handled

    arguments = parse(argv)
    arguments.line = shlex.join(["rconv", *argv])
    from rconv.cli.commands import COMMANDS  # PyTorch, which --help does not need

    interrupts.working = True
    return COMMANDS[arguments.command](arguments) or 0


def _refuse(error: Exception) -> int:
    """One line that says what is wrong, and the exit code."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRAS:
        complain(f"error: {remedy(error.name.split('.')[0])}")
        return 2
    if isinstance(error, ValueError | OSError):
        complain(f"error: {_reason(error)}")
        return 2
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "memory" in str(error)
    ):  # PyTorch has no class of its own for this
        complain("error: there is not enough memory for this")
        return 2
    if os.environ.get(DEBUG):
        sys.excepthook(type(error), error, error.__traceback__)
    complain(
        f"error: unexpected {type(error).__name__}: {error}; this is a defect of rconv, please "
        f"report it; {DEBUG}=1 shows where it is"
    )
    return 1


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)

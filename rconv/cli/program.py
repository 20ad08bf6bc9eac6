"""The command line from its arguments to its exit code."""

import os
import shlex
import sys
from collections.abc import Sequence

from rconv.cli.arguments import parser
from rconv.cli.commands import COMMANDS
from rconv.cli.terminal import complain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process.

    Returns
    -------
    int
        The exit code: 0, or 2 for bad input and output that cannot be written, with one line on
        standard error that says why; 130 where the user interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv.insert(0, "attack")
    try:
        _answer(argv)
    except (ValueError, OSError) as error:
        complain(f"error: {_reason(error)}")
        return 2
    except RuntimeError as error:  # PyTorch has no class of its own for this
        if "memory" not in str(error):
            raise
        complain("error: there is not enough memory for this")
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return 0


def _answer(argv: list[str]) -> None:
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for what its encoding does not have
    arguments = parser().parse_args(argv)
    arguments.line = shlex.join(["rconv", *argv])
    COMMANDS[arguments.command](arguments)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)

"""The command line: arguments, and what each command does with them.

Computes nothing itself: every command calls what `rconv.lab` and the subpackages below it offer.
"""

from rconv.cli.program import main

__all__ = ["main"]

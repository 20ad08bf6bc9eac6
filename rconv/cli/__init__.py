"""The command line."""

from rconv.cli.commands import main

__all__ = ["main"]

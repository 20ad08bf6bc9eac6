"""Files that a command reads and writes, refused before the work whose result would be lost."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rconv.data import TRAIN_SIZES
from rconv.data.sources import data_folder
from rconv.files import output_file


def check_files(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Refuse outputs that cannot be written, and those that would replace one another.

    Parameters
    ----------
    outputs : mapping of str to str or None
        Option → file to write; None where the option is not given.
    inputs : mapping of str to str or None
        Option → file that is read.

    Raises
    ------
    OSError
        If a file cannot be written, as `rconv.files.output_file` finds out.
    ValueError
        If an output is the file of another output, of an input, or of standard output, whatever
        the two are called.
    """
    taken = {o: Path(os.path.realpath(path)) for o, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        target = output_file(path)
        for other, file in taken.items():
            if _same(target, file):
                raise ValueError(f"{option} and {other} are one file, {path}: name two")
        if _is_standard_output(target):
            raise ValueError(f"{option}: {path} is where standard output goes: name another file")
        taken[option] = target


def check_data(dataset: str, path: str | None) -> None:
    """Refuse a folder of data that does not exist: a mistyped name would become a new folder.

    Parameters
    ----------
    dataset : str
        Photos and Digits need no folder, so that for them RCONV_DATA does not matter.
    path : str or None
        What --data-dir says, ~ for the user's own; None where it is not given.

    Raises
    ------
    ValueError
        If --data-dir, or else the environment variable RCONV_DATA, names no folder.
    """
    option = "--data-dir"
    if path is None and dataset in TRAIN_SIZES:
        option, path = "RCONV_DATA:", os.environ.get("RCONV_DATA")
    if not path:
        return
    folder = data_folder(path)
    if not folder.is_dir():
        reason = "is no folder" if folder.exists() else "no such folder, create it first"
        raise ValueError(f"{option} {path}: {reason}")


def _same(a: Path, b: Path) -> bool:
    return a == b or (a.exists() and b.exists() and a.samefile(b))


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # no such file yet, or an output that is no file
        return False

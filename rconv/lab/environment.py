"""The versions of the libraries that computed a result, compared with the repository's own.

``constraints.txt`` has one exact version of every library that the project runs with, for each
Python and platform. Its short hash in a record says with which versions the record can be made
again: those of the file that has this hash, in the history of the repository.
"""

import hashlib
import re
from importlib.metadata import distributions
from pathlib import Path

PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
"""Name and version in a line of the file; the lines below it are hashes."""


def identity(constraints: Path) -> str | None:
    """Short hash of the file, or None where a library is installed in a version that it lacks.

    Parameters
    ----------
    constraints : Path
        ``constraints.txt``. A library may have several lines, for other platforms. Libraries that
        are not installed, and installed ones that the file does not name, do not count; nor do
        local versions: 2.15.0+cpu is 2.15.0.

    Returns
    -------
    str or None
        16 hexadecimal digits.
    """
    text = constraints.read_text(encoding="utf-8")
    pins: dict[str, set[str]] = {}
    for name, version in PIN.findall(text):
        pins.setdefault(_normalised(name), set()).add(version)
    for own in distributions():
        name = _normalised(own.metadata["Name"] or "")
        if name in pins and own.version.partition("+")[0] not in pins[name]:
            return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _normalised(name: str) -> str:
    """A library's name as package indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()

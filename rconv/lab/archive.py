"""Records that the repository keeps: small, dated, and tied to the networks they were made with.

A file holds the records of one point of a grid, column by column: ``{"version", "torch",
"environment", "date", "grid", "parameters", "facts", "records": {"runs", "columns", "layers"}}``.
A column with few changes is kept as runs of equal values, layers are packed one by one in the same
way, and numbers keep four significant digits.

``constraints.txt`` has one exact version of every library that the project runs with, for each
Python and platform. Its short hash in a file says with which versions the records can be made
again: those of the ``constraints.txt`` that has this hash, in the history of the repository.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from rconv.files import replacing
from rconv.lab import architectures
from rconv.lab.records import SUCCESS, Record

DIGITS = 4
"""Significant digits that are kept: tables show two, and medians of many are shown with three."""

LAYERS = "layers"
"""The entry of a record that is itself a list of records, one per layer."""

DROPPED = ("residual",)
"""Entries of a record, and of its layers, that are too bulky to keep."""

STEP = 2.0**-20
"""Weights are hashed as multiples of this. Their last bits depend on whether the processor rounds
once or twice where it scales a random number; that moves one of a million weights of size 1 to
another multiple with a probability of 10⁶ · 2⁻⁵³ / `STEP`, about 10⁻⁴."""


PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
"""Name and version in a line of ``constraints.txt``; the lines below it are hashes."""


@dataclass(frozen=True)
class Archive:
    """Records with their origin.

    Parameters
    ----------
    version : str
        Of the package that made them.
    torch : str or None
        Version of PyTorch; None in files that are older than this entry.
    date : str
        Day on which the point of the grid was run, ISO 8601, UTC.
    grid : str
        Name of the grid, a file of ``workflow/grids``.
    parameters : dict
        What the grid gave to the notebook.
    facts : dict of str to str
        Architecture → `digest` of it when the records were made.
    records : list of Record
        One per attack. An entry that some records lack is None in these. Old files have no
        "layers".
    environment : str or None
        `locked_environment` of the versions that made them; None where they are not
        those of ``constraints.txt``, and in files that are older than this entry.
    """

    version: str
    torch: str | None
    date: str
    grid: str
    parameters: dict[str, Any]
    facts: dict[str, str]
    records: list[Record]
    environment: str | None = None

    @property
    def stale(self) -> list[str]:
        """Architectures that are no longer those of the records."""
        return [
            name
            for name, own in self.facts.items()
            if name not in architectures.ARCHITECTURES or own != digest(name)
        ]


def read(path: Path) -> Archive:
    """Read a file that `write` has written.

    Raises OSError if it cannot be read, and ValueError if it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Archive(**{**content, "records": unpack(content["records"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "take it from the repository again, or run `make paper`"
        raise ValueError(f"{path} is no archive of records ({error!r}): {remedy}") from error


def write(
    path: Path,
    source: Path,
    grid: str,
    version: str,
    parameters: Mapping[str, Any],
    environment: str | None = None,
) -> None:
    """Keep the result of one point of a grid; the file is whole or not there at all.

    The source is a list of records in JSON; its date is kept. The parameters are what the grid
    gives to the notebook at this point.
    """
    records = json.loads(source.read_text(encoding="utf-8"))
    names = {r.get("architecture") for r in records} & set(architectures.ARCHITECTURES)
    content = {
        "version": version,
        "torch": str(torch.__version__),
        "environment": environment,
        "date": datetime.fromtimestamp(source.stat().st_mtime, UTC).date().isoformat(),
        "grid": grid,
        "parameters": dict(parameters),
        "facts": {name: digest(name) for name in sorted(names)},
        "records": pack(records),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        file.write((text + "\n").encode())


def digest(name: str) -> str:
    """Short hash of all that decides an architecture's records, the attack apart.

    That is its entry in the table, the weights that the default seed gives it (in steps of `STEP`),
    the values of the pixels, and the error below which an image counts as reconstructed.
    """
    facts = {
        "architecture": asdict(architectures.ARCHITECTURES[name]),
        "pixels": "32 × 32, in [0, 1]",
        "success": SUCCESS,
    }
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for parameter in architectures.build(name).parameters():
        steps = (parameter.detach() / STEP).round().to(torch.int32)
        sha.update(steps.numpy().astype("<i4").tobytes())
    return sha.hexdigest()[:16]


def locked_environment(constraints: Path) -> str | None:
    """Short hash of the file, or None where a library is installed in a version that it lacks.

    A library may have several lines, for other platforms. Libraries that are not installed, and
    installed ones that the file does not name, do not count; nor do local versions: 2.15.0+cpu is
    2.15.0.
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


def pack(records: Sequence[Record]) -> dict[str, Any]:
    """Records as columns: those with long runs of equal values as runs, the others as lists."""
    packed: dict[str, Any] = {"runs": {}, "columns": {}}
    left_out = (*DROPPED, LAYERS)
    for key in dict.fromkeys(key for record in records for key in record if key not in left_out):
        column = [rounded(record.get(key)) for record in records]
        # Told apart as text: True and 1 are equal, and so are 1 and 1.0.
        runs = [[json.loads(text), len(list(same))] for text, same in groupby(column, json.dumps)]
        short = 2 * len(runs) < len(column) or len(runs) == 1
        packed["runs" if short else "columns"][key] = runs if short else column
    depth = max((len(record.get(LAYERS) or ()) for record in records), default=0)
    if depth:
        stacks = (record.get(LAYERS) or [{}] * depth for record in records)
        packed[LAYERS] = [pack(layer) for layer in zip(*stacks, strict=True)]
    return packed


def unpack(packed: Mapping[str, Any]) -> list[Record]:
    """The records of `pack`, without what was left out."""
    columns = dict(packed["columns"])
    for key, runs in packed["runs"].items():
        columns[key] = [value for value, count in runs for _ in range(count)]
    if LAYERS in packed:
        stacks = zip(*map(unpack, packed[LAYERS]), strict=True)
        # A record without layers was packed with empty ones.
        columns[LAYERS] = [None if own[0]["name"] is None else list(own) for own in stacks]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def rounded(value: Any) -> Any:
    """A JSON value with `DIGITS` significant digits in each of its floating-point numbers."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return value

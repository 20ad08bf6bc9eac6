"""Records that the repository keeps: small, dated, and tied to the networks they were made with.

A file holds the records of one point of a grid, column by column: ``{"version", "torch",
"environment", "date", "grid", "parameters", "facts", "records": {"runs", "columns", "layers"}}``.
A column with few changes is kept as runs of equal values, layers are packed one by one in the same
way, and numbers keep four significant digits. ``workflow/records.py`` writes these files.

``constraints.txt`` has one exact version of every library that the project runs with, for each
Python and platform. Its short hash in a file says with which versions the records can be made
again: those of the ``constraints.txt`` that has this hash, in the history of the repository.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rconv.lab.records import Record

LAYERS = "layers"
"""The entry of a record that is itself a list of records, one per layer."""


@dataclass(frozen=True)
class Archive:
    """Records, and what they were made with.

    `version` and `torch` are those of the packages, `date` is the day (ISO 8601, UTC), `grid` a
    file of ``workflow/grids``, `parameters` what it gave to the notebook. `facts` maps an
    architecture to its hash at that time, and `environment` is the short hash of the
    ``constraints.txt``. `torch` and `environment` are None in files that are older than these
    entries. An entry that some records lack is None in these; old records have no "layers".
    """

    version: str
    torch: str | None
    date: str
    grid: str
    parameters: dict[str, Any]
    facts: dict[str, str]
    records: list[Record]
    environment: str | None = None


def read(path: Path) -> Archive:
    """Read a file of records; OSError if it cannot be read, ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Archive(**{**content, "records": unpack(content["records"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "take it from the repository again, or run `make paper`"
        raise ValueError(f"{path} is no archive of records ({error!r}): {remedy}") from error


def unpack(packed: Mapping[str, Any]) -> list[Record]:
    """The records of a packed file, without what was left out."""
    columns = dict(packed["columns"])
    for key, runs in packed["runs"].items():
        columns[key] = [value for value, count in runs for _ in range(count)]
    if LAYERS in packed:
        stacks = zip(*map(unpack, packed[LAYERS]), strict=True)
        # A record without layers was packed with empty ones.
        columns[LAYERS] = [None if stack[0]["name"] is None else list(stack) for stack in stacks]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

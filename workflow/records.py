"""Keep the results of a grid in the repository, small and dated, for the book of a bare clone.

    python workflow/records.py paper

A point that has no result now keeps the record that it has; what is no point of the grid any more
is removed. `rconv.lab.archive` says what a file holds, and reads it.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import distributions
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml
from grid import parameters, points

import rconv
from rconv.files import replacing
from rconv.lab import architectures
from rconv.lab.archive import LAYERS, Archive
from rconv.lab.records import SUCCESS, Record

RESULTS = Path("results")
KEPT = Path("book/records")
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"

DIGITS = 4
"""Significant digits that are kept: tables show two, and medians of many are shown with three."""

DROPPED = ("residual",)
"""Entries of a record, and of its layers, that are too bulky to keep."""

STEP = 2.0**-20
"""Weights are hashed as multiples of this. Their last bits depend on whether the processor rounds
once or twice where it scales a random number; that moves one of a million weights of size 1 to
another multiple with a probability of 10⁶ · 2⁻⁵³ / `STEP`, about 10⁻⁴."""

PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
"""Name and version in a line of ``constraints.txt``; the lines below it are hashes."""


def main(name):
    """Write book/records from results, and say how much it is."""
    config = yaml.safe_load(Path(f"workflow/grids/{name}.yaml").read_text())
    wanted = {
        Path(notebook, f"{point}.json"): parameters(grid, *point.split("-"))
        for notebook, grid in config.items()
        for point in points(grid)
    }
    versions = locked_environment(CONSTRAINTS)
    for path, own in sorted(wanted.items()):
        if (RESULTS / path).exists():
            write(KEPT / path, RESULTS / path, name, rconv.__version__, own, versions)
    for old in KEPT.glob("*/*.json"):
        if old.relative_to(KEPT) not in wanted:
            old.unlink()
    kept = list(KEPT.glob("*/*.json"))
    size = sum(path.stat().st_size for path in kept) / 1e3
    print(f"Records: {len(kept)} of the {len(wanted)} points of {name}, {size:.0f} kB in {KEPT}")


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


def stale(kept: Archive) -> list[str]:
    """Architectures that are no longer those of the records."""
    return [
        name
        for name, before in kept.facts.items()
        if name not in architectures.ARCHITECTURES or before != digest(name)
    ]


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


def rounded(value: Any) -> Any:
    """A JSON value with `DIGITS` significant digits in each of its floating-point numbers."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return value


if __name__ == "__main__":
    main(*sys.argv[1:])

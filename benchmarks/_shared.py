"""What the benchmarks share: images that are at hand, and the record of the last full run.

A run without options is the full one. It is kept beside the benchmark as NAME.json, or where
`--write` says. `--short` does the same with little data, in seconds, to see that it runs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from rconv.data import datasets
from rconv.files import replacing


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser of the options that every benchmark has."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--short", action="store_true", help="little data: does it run?")
    options.add_argument("--write", type=Path, metavar="FILE", help="keep the result there")
    return options


def dataset(name: str, count: int) -> str:
    """The dataset, if its first images are on this machine; else images that always are."""
    try:
        datasets.load(name, range(count), download=False)
    except datasets.DatasetError:
        other = "Digits" if datasets.CHANNELS[name] == 1 else "Photos"
        print(f"{name} is not at hand, {other} instead", file=sys.stderr)
        return other
    return name


def keep(options: argparse.Namespace, points: Sequence[dict]) -> None:
    """Write the points of a full run beside the benchmark, and of any other where it says."""
    file = Path(sys.argv[0])
    target = file.with_suffix(".json") if len(sys.argv) == 1 else options.write
    if target is None:
        return
    command = " ".join(["python benchmarks/" + file.name, *sys.argv[1:]])
    content = {
        "made": f"{command}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "date": datetime.now(UTC).date().isoformat(),
        "points": list(points),
    }
    with replacing(target) as written:
        written.write((json.dumps(content, indent=1) + "\n").encode())


def named(header: Sequence[str], rows: Sequence[Sequence]) -> list[dict]:
    """Rows of a table as points of a record."""
    return [dict(zip(header, row, strict=True)) for row in rows]

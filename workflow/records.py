"""Keep the results of a grid in the repository, small and dated, for the book of a bare clone.

    python workflow/records.py paper

A point that has no result now keeps the record that it has; what is no point of the grid any more
is removed.
"""

import sys
from pathlib import Path

import yaml
from grid import parameters, points

import rconv
from rconv.lab import archive

RESULTS = Path("results")
KEPT = Path("book/records")
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def main(name):
    """Write book/records from results, and say how much it is."""
    config = yaml.safe_load(Path(f"workflow/grids/{name}.yaml").read_text())
    wanted = {
        Path(notebook, f"{point}.json"): parameters(grid, *point.split("-"))
        for notebook, grid in config.items()
        for point in points(grid)
    }
    versions = archive.locked_environment(CONSTRAINTS)
    for path, own in sorted(wanted.items()):
        if (RESULTS / path).exists():
            archive.write(KEPT / path, RESULTS / path, name, rconv.__version__, own, versions)
    for old in KEPT.glob("*/*.json"):
        if old.relative_to(KEPT) not in wanted:
            old.unlink()
    kept = list(KEPT.glob("*/*.json"))
    size = sum(path.stat().st_size for path in kept) / 1e3
    print(f"Records: {len(kept)} of the {len(wanted)} points of {name}, {size:.0f} kB in {KEPT}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""For the book's notebooks: numbers that the text quotes, and results that the grid wrote.

IPython is the book's, not the package's: it is imported where a page needs it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rconv.lab import archive
from rconv.lab.records import Record
from rconv.show.numbers import scientific

PREFIX = "application/papermill.record/"

FRESH = Path("../results")
"""Results of the grid on this machine, as seen from a page's notebook."""

KEPT = Path("../book/records")
"""Results that the repository keeps, see `rconv.lab.archive`."""


def glue(name: str, value: Any) -> None:
    """Give a value a name by which this page, or another one, can quote it.

    Quoted as ``{glue:text}`name``` in the same page, ``{glue:text}`file.md::name``` from another
    one, with a format behind it where the value is a number: ``{glue:text}`name:.1f```. A figure
    that stands above the cells that make it is quoted by the directive ``{glue:} name``. What
    MyST-NB's own function of this name does, without Sphinx behind it; numbers in a string are
    written as `rconv.show.tables.scientific` writes them.
    """
    from IPython.display import display

    metadata = {"scrapbook": {"name": name, "mime_prefix": PREFIX}}
    shown = scientific(value) if isinstance(value, str) else value
    data = {f"{PREFIX}text/plain": repr(shown)}
    if hasattr(value, "_repr_html_"):
        data[f"{PREFIX}text/html"] = value._repr_html_()
    display(data, metadata=metadata, raw=True)


def results(notebook: str) -> dict[tuple[str, str], list[Record]]:
    """Records of all points of the grid that were run with one of the parameterised notebooks.

    Those that this machine's grid has written, and for every other point those that the repository
    keeps: (dataset, architecture) → records, sorted by name. Where there are none, the page says
    what to run.
    """
    kept = {_point(path): archive.read(path).records for path in _files(KEPT, notebook)}
    made_here = {_point(path): json.loads(path.read_text()) for path in _files(FRESH, notebook)}
    found = {**kept, **made_here}
    if not found:
        from IPython.display import Markdown, display

        display(Markdown("**There are no results yet: run `make grid`.**"))
    return dict(sorted(found.items()))


def origin(notebook: str) -> str:
    """Where `results` of a notebook come from, in Markdown: fresh, or kept since when."""
    here = {_point(path) for path in _files(FRESH, notebook)}
    kept: dict[tuple[str, str, str], list] = {}
    for path in _files(KEPT, notebook):
        if _point(path) not in here:
            archived = archive.read(path)
            kept.setdefault((archived.date, archived.version, archived.grid), []).append(
                _point(path)
            )
    parts = []
    if here:
        parts.append(f"Run on the machine that built this page: {_names(here)}.")
    for (date, version, grid), points in sorted(kept.items()):
        parts.append(
            f"Kept in the repository since {date}, made by version {version} with "
            f"`make {grid}`, which makes them anew: {_names(points)}."
        )
    return "*Origin of the results.* " + (" ".join(parts) or "There are none yet.")


def link(notebook: str, point: tuple[str, str]) -> str:
    """Name of a point of the grid, for a table: a link to its page if this book has it."""
    name = ", ".join(point)
    address = page(notebook, point)
    return name if address is None else f'<a href="{address}">{name}</a>'


def page(notebook: str, point: tuple[str, str]) -> str | None:
    """Address of a point's page, or None where it has none yet."""
    path = Path("../book", notebook, "-".join(point))
    return f"{path.as_posix()}.html" if path.with_suffix(".ipynb").exists() else None


def fresh(notebook: str, point: tuple[str, str]) -> bool:
    """Whether a point was run on this machine, so that its page shows the images."""
    result = FRESH / notebook / f"{'-'.join(point)}.json"
    return result.exists() and page(notebook, point) is not None


def _files(folder: Path, notebook: str) -> list[Path]:
    return sorted((folder / notebook).glob("*.json"))


def _point(path: Path) -> tuple[str, str]:
    dataset, architecture = path.stem.split("-")
    return dataset, architecture


def _names(points: Iterable[tuple[str, str]]) -> str:
    by_dataset: dict[str, list[str]] = {}
    for dataset, architecture in sorted(points):
        by_dataset.setdefault(dataset, []).append(f"`{architecture}`")
    return "; ".join(
        f"{name} with {', '.join(architectures)}" for name, architectures in by_dataset.items()
    )

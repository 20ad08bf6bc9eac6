"""For the book's notebooks: a number that the text quotes comes from the cell that computed it."""

import json
from pathlib import Path
from typing import Any

from IPython.display import Markdown, display

from rconv.lab.records import Record

PREFIX = "application/papermill.record/"


def glue(name: str, value: Any) -> None:
    """Give a value a name by which this page, or another one, can quote it.

    Quoted as ``{glue:text}`name``` in the same page, ``{glue:text}`file.md::name``` from another
    one, with a format behind it where the value is a number: ``{glue:text}`name:.1f```. What
    MyST-NB's own function of this name does, without Sphinx behind it.

    Parameters
    ----------
    name : unique within its page.
    value : a number or a text.
    """
    metadata = {"scrapbook": {"name": name, "mime_prefix": PREFIX}}
    data = {f"{PREFIX}text/plain": repr(value)}
    display(data, metadata=metadata, raw=True)


def results(notebook: str) -> dict[tuple[str, str], list[Record]]:
    """Records of all points of the grid that were run with one of the parameterised notebooks.

    Parameters
    ----------
    notebook : its name, a folder of ``../results``, as seen from a page's notebook.

    Returns
    -------
    (dataset, architecture) → records. Where there are none, the page says what to run.
    """
    paths = sorted(Path("../results", notebook).glob("*.json"))
    if not paths:
        display(Markdown("**There are no results yet: run `make grid`.**"))
    return {tuple(path.stem.split("-")): json.loads(path.read_text()) for path in paths}


def link(notebook: str, point: tuple[str, str]) -> str:
    """Link to the page of a point of the grid, for a table."""
    return f'<a href="../book/{notebook}/{"-".join(point)}.html">{", ".join(point)}</a>'

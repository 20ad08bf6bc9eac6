"""A page from records that were kept: the notebook of its point, without the attack.

The cells tagged `needs-images` go; the records take their place, and a note says so.
"""

import os
from contextlib import chdir
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from run import NOTEBOOKS, clean, prepare, take_records

from rconv.lab import archive
from rconv.lab.archive import Archive

TAG = "needs-images"
"""Of cells that attack images or show them."""

NOTE = """:::{{admonition}} Drawn from records
:class: note
No attack ran when this book was built. The results were made on {date} by version {version} of
`rconv` with {torch}, and the repository keeps them, with four significant digits{layers}. Times
are those of the machine that made them.{pictures} What the grid gave to the notebook:

{parameters}

The same page from an attack of your own, by the notebook `{notebook}`:

```bash
make grid GRID={grid} POINT={notebook}/{point}{data}
make html
```
:::"""


NO_PICTURES = " Pictures of images are left out: the repository passes on no image of the datasets."


def origin(record: Path, kept: Archive) -> str:
    """When and how the records of a page were made, as far as they know, in Markdown."""
    detailed = any(r.get(archive.LAYERS) for r in kept.records)
    embedded = kept.parameters["dataset"] in ("Photos", "Digits")
    rows = [f"| `{name}` | `{value}` |" for name, value in kept.parameters.items()]
    return NOTE.format(
        date=kept.date,
        version=kept.version,
        torch=_libraries(kept),
        pictures="" if embedded else NO_PICTURES,
        layers="" if detailed else " and without the detail per layer",
        parameters="\n".join(["| parameter | value |", "| --- | --- |", *rows]),
        grid=kept.grid,
        notebook=record.parent.name,
        point=record.stem,
        data="" if embedded else " RCONV_DATA=path/to/data",
    )


def _libraries(kept: Archive) -> str:
    """The versions that the records were made with, as far as they are known."""
    if not kept.torch:
        return "a version of PyTorch that was not noted"
    named = f"PyTorch {kept.torch}"
    if kept.environment:
        named += f" and the other versions of `constraints.txt` (SHA-256 `{kept.environment}…`)"
    return named


def assemble(record: Path, kept: Archive) -> nbformat.NotebookNode:
    """The notebook of a point with the records in place of the attack, not yet executed."""
    notebook = prepare(NOTEBOOKS / f"{record.parent.name}.md", kept.parameters)
    notebook = parameterize_notebook(load_notebook_node(notebook), kept.parameters)
    path = Path(os.path.relpath(record, NOTEBOOKS)).as_posix()
    load = (
        "from pathlib import Path\n\nfrom rconv.lab import archive\n\n"
        f'path = Path("{path}")\nrecords = archive.read(path).records'
    )
    first, *others = [n for n, c in enumerate(notebook.cells) if TAG in c.metadata.get("tags", [])]
    notebook.cells[first] = nbformat.v4.new_code_cell(load)
    for number in reversed(others):
        del notebook.cells[number]
    _, introduction = [n for n, c in enumerate(notebook.cells) if c.cell_type == "markdown"][:2]
    notebook.cells.insert(introduction + 1, nbformat.v4.new_markdown_cell(origin(record, kept)))
    return notebook


class Shell(InteractiveShell):
    """Runs cells without a screen."""

    def enable_gui(self, gui: str | None = None) -> None:
        """There is none: figures are outputs."""


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run the cells here: a process for each page would import PyTorch 44 times."""
    os.environ["RCONV_FIGURES"] = "html"  # see rconv.show.responsive
    shell = Shell.instance()
    shell.run_line_magic("reset_selective", "-f .")
    shell.extension_manager.load_extension("rconv.show.responsive")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            with chdir(NOTEBOOKS), capture_output() as captured:
                result = shell.run_cell(cell.source)
            result.raise_error()
            cell.outputs = [
                nbformat.v4.new_output("display_data", own.data, metadata=own.metadata or {})
                for own in captured.outputs
            ]


def lighten(notebook: nbformat.NotebookNode) -> None:
    """Show what the cells say and not the cells, which are the notebook's."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["tags"] = ["remove-input" if cell.outputs else "remove-cell"]


def draw(record: Path) -> nbformat.NotebookNode:
    """The executed page of a record."""
    notebook = assemble(record, archive.read(record))
    execute(notebook)
    take_records(notebook)
    clean(notebook)
    lighten(notebook)
    return notebook

"""Draw the page of every point whose records the repository keeps, without its data.

    python workflow/kept.py

A page is what `run.py` makes of its notebook, but for the cells tagged `needs-images`: the kept
records take the place of those that attack, and a note says so. A point with results of its own
has a page of its own. Only what changed is drawn again: a page names what it was drawn from.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from run import NOTEBOOKS, clean, prepare, replace, take_records

from rconv.lab import archive
from rconv.lab.archive import Archive

BOOK = Path("book")
KEPT = BOOK / "records"
RESULTS = Path("results")

TAG = "needs-images"
"""Of cells that attack images or show them."""

NOTE = """:::{{admonition}} Drawn from records
:class: note
No attack ran when this book was built. The results were made on {date} by version {version} of
`rconv` with {torch}, and the repository keeps them, with four significant digits{layers}. There are
no pictures of images here, because the repository passes on no image of the datasets. The same
page with pictures, made anew:

```bash
make grid GRID={grid} POINT={notebook}/{point}{data}
make html
```

What the grid gave to the notebook:

{parameters}
:::"""


def sources() -> bytes:
    """All that decides a page besides its notebook and its records."""
    paths = [*sorted(Path("rconv").rglob("*.py")), Path("workflow/run.py"), Path(__file__)]
    return b"".join(path.read_bytes() for path in paths)


def origin(record: Path, kept: Archive) -> str:
    """When and how the records of a page were made, as far as they know, in Markdown."""
    rows = "\n".join(f"| `{key}` | {value} |" for key, value in kept.parameters.items())
    detailed = any(r.get(archive.LAYERS) for r in kept.records)
    download = kept.parameters["dataset"] not in ("Photos", "Digits")
    return NOTE.format(
        date=kept.date,
        version=kept.version,
        torch=f"PyTorch {kept.torch}" if kept.torch else "a version of PyTorch that is not known",
        layers="" if detailed else " and without the detail per layer",
        grid=kept.grid,
        notebook=record.parent.name,
        point=record.stem,
        data=" RCONV_DATA=path/to/data" if download else "",
        parameters=f"| parameter | value |\n| --- | --- |\n{rows}",
    )


def assemble(record: Path, kept: Archive) -> nbformat.NotebookNode:
    """The notebook of a point with the records in place of the attack, not yet executed."""
    notebook = prepare(NOTEBOOKS / f"{record.parent.name}.md", kept.parameters)
    notebook = parameterize_notebook(load_notebook_node(notebook), kept.parameters)
    path = Path(os.path.relpath(record, NOTEBOOKS)).as_posix()
    load = (
        "from pathlib import Path\n\nfrom rconv.lab import archive\n\n"
        f'records = archive.read(Path(\n    "{path}")).records'
    )
    needy = [n for n, cell in enumerate(notebook.cells) if TAG in cell.metadata.get("tags", [])]
    notebook.cells[needy[0]] = nbformat.v4.new_code_cell(load)
    for number in reversed(needy[1:]):
        del notebook.cells[number]
    _, introduction = [n for n, c in enumerate(notebook.cells) if c.cell_type == "markdown"][:2]
    notebook.cells.insert(introduction + 1, nbformat.v4.new_markdown_cell(origin(record, kept)))
    return notebook


def draw(record: Path, kernel: KernelManager) -> nbformat.NotebookNode:
    """The executed page of a record; the kernel forgets the page before."""
    notebook = assemble(record, archive.read(record))
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = NotebookClient(notebook, km=kernel, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    del notebook.cells[0]
    take_records(notebook)
    clean(notebook)
    return notebook


def main() -> None:
    """Draw what is missing or out of date, and remove what has no records any more."""
    start, base, drawn = time.perf_counter(), sources(), 0
    kernel = KernelManager(kernel_name="python3")
    for record in sorted(KEPT.glob("*/*.json")):
        point = record.relative_to(KEPT)
        page = BOOK / point.with_suffix(".ipynb")
        if (RESULTS / point).exists():
            continue
        parts = (base, (NOTEBOOKS / f"{point.parent}.md").read_bytes(), record.read_bytes())
        mark = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
        if page.exists() and nbformat.read(page, 4).metadata.get("drawn_from") == mark:
            continue
        notebook = draw(record, kernel)
        notebook.metadata["drawn_from"] = mark
        replace(page, nbformat.writes(notebook) + "\n")
        drawn += 1
    if kernel.has_kernel:
        kernel.shutdown_kernel(now=True)
    print(f"Records: {drawn} pages drawn, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())

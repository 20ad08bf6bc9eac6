"""Run a parameterised notebook at one point of the grid.

    python workflow/run.py experiment PAGE RECORD '{"dataset": "Photos", ...}'

Writes a page of the book (an executed notebook) and the results record that other pages read.
Both are written whole or not at all, and a second run with equal inputs writes equal bytes. If a
cell fails, its error is shown and neither file is left.
"""

import json
import logging
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import papermill

NOTEBOOKS = Path("notebooks")
PATIENCE = 300
"""Seconds that an output may take on its way from the kernel: on a machine that is busy with other
work, a few are not enough, and a point of many minutes would be lost at its last cell."""

RECORDS = "application/vnd.rconv.records+json"
"""Type of the output by which the notebook hands over its records; it is no part of the page."""


def prepare(path, parameters):
    """The notebook with its titles and alternative texts filled in: no code cell can do that."""

    def fill(text):
        for name in ("dataset", "architecture"):
            text = text.replace(f"{{{name}}}", parameters[name])
        return text

    notebook = jupytext.read(path)
    for cell in notebook.cells:
        image = cell.metadata.get("mystnb", {}).get("image", {})
        if "alt" in image:
            image["alt"] = fill(image["alt"])
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source)
    return notebook


def execute(notebook, parameters):
    """Execute in memory, where the notebook lies, so that relative paths mean the same."""
    return papermill.execute_notebook(
        notebook,
        None,
        parameters,
        kernel_name="python3",
        progress_bar=False,
        cwd=NOTEBOOKS,
        iopub_timeout=PATIENCE,
    )


def take_records(notebook):
    """Remove the output that holds the records, and return them."""
    found = []
    for cell in notebook.cells:
        for output in list(cell.get("outputs", [])):
            if RECORDS in output.get("data", {}):
                found.append(output.data[RECORDS])
                cell.outputs.remove(output)
    if len(found) != 1:
        raise SystemExit(f"the notebook must display {RECORDS} once, not {len(found)} times")
    return found[0]


def clean(notebook):
    """Drop all that differs from run to run, and hide the injected parameters."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for key in ("execution", "papermill"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-input")


def replace(path, text):
    """Write a file and its folder, whole or not at all.

    By hand: `rconv.files` would load PyTorch here too, three seconds for each point.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def main(notebook, page, record, parameters):
    """Run one point, and say on one line what was done."""
    page, record, parameters = Path(page), Path(record), json.loads(parameters)
    point = f"{notebook}: {parameters['dataset']}, {parameters['architecture']}"
    logging.getLogger("papermill").setLevel(logging.WARNING)
    start = time.perf_counter()
    try:
        executed = execute(prepare(NOTEBOOKS / f"{notebook}.md", parameters), parameters)
        records = take_records(executed)
        clean(executed)
        replace(record, json.dumps(records, indent=1) + "\n")
        replace(page, nbformat.writes(executed) + "\n")
    except BaseException as error:
        record.unlink(missing_ok=True)
        page.unlink(missing_ok=True)
        if isinstance(error, papermill.PapermillExecutionError):
            raise SystemExit(f"{point}: {error}") from None
        raise
    print(f"{point}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

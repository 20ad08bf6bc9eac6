"""Write, for every point of the grids, the notebook that a reader opens on Binder or Colab.

    python workflow/launchable.py

The parameterised notebook with the point's parameters and titles in it and no outputs, in a folder
of its name: notebooks/experiment/Photos-lenet_main.ipynb. As deep as the point's page in the book,
so that relative links lead where they lead there. What is no point any more is removed.
"""

import logging
from pathlib import Path

import nbformat
import papermill
import yaml
from grid import parameters, points
from run import NOTEBOOKS, clean, prepare

GRIDS = Path("workflow/grids")


def launchable(notebook, values):
    """The text of one point's notebook."""
    prepared = prepare(NOTEBOOKS / f"{notebook}.md", values)
    made = papermill.execute_notebook(prepared, None, values, prepare_only=True)
    clean(made)
    return nbformat.writes(made) + "\n"


def main():
    """Write all of them."""
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters without a use
    texts = {
        NOTEBOOKS / notebook / f"{point}.ipynb": launchable(
            notebook, parameters(grid, *point.split("-"))
        )
        for path in GRIDS.glob("*.yaml")
        for notebook, grid in yaml.safe_load(path.read_text()).items()
        for point in points(grid)
    }
    for old in set(NOTEBOOKS.glob("*/*.ipynb")) - set(texts):
        old.unlink()
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()

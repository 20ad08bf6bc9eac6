"""One point of the grid: repeatable to the byte, whole or not at all."""

import importlib.util
import json
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
GRIDS = sorted((ROOT / "workflow" / "grids").glob("*.yaml"))
PARAMETERS = json.dumps({"dataset": "Photos", "architecture": "lenet_main", "seeds": [50]})

NOTEBOOK = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# {dataset}, {architecture}

```{code-cell}
:tags: [parameters]
dataset, architecture, seeds = None, None, []
```

```{code-cell}
assert seeds == [50]
from IPython.display import display
display({"application/vnd.rconv.records+json": [{"dataset": dataset}]}, raw=True)
```
"""


@pytest.fixture
def run(tmp_path):
    """The runner, with a notebook of its own."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "workflow" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.NOTEBOOKS = tmp_path
    (tmp_path / "notebook.md").write_text(NOTEBOOK)
    return module


def test_a_page_and_its_record_the_same_every_time(run, tmp_path):
    pages = []
    for name in ("first", "second"):
        page, record = tmp_path / f"{name}.ipynb", tmp_path / f"{name}.json"
        run.main("notebook", page, record, PARAMETERS)
        assert json.loads(record.read_text()) == [{"dataset": "Photos"}]
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]


def test_titles_are_filled_in_and_the_parameters_hidden(run, tmp_path):
    run.main("notebook", tmp_path / "page.ipynb", tmp_path / "record.json", PARAMETERS)
    page = nbformat.read(tmp_path / "page.ipynb", 4)
    assert page.cells[0].source == "# Photos, lenet_main"
    (injected,) = (c for c in page.cells if "injected-parameters" in c.metadata.get("tags", []))
    assert "hide-input" in injected.metadata.tags
    assert not any("papermill" in cell.metadata for cell in page.cells)


@pytest.mark.parametrize("instead", ["dataset", "[][0]"], ids=["no records", "failing cell"])
def test_a_failing_point_shows_why_and_leaves_nothing_stale(run, tmp_path, instead):
    page, record = tmp_path / "page.ipynb", tmp_path / "record.json"
    page.write_text("stale")
    record.write_text("stale")
    display = NOTEBOOK.splitlines()[-2]
    (run.NOTEBOOKS / "notebook.md").write_text(NOTEBOOK.replace(display, instead))
    with pytest.raises(SystemExit, match="IndexError" if "[]" in instead else "must display"):
        run.main("notebook", page, record, PARAMETERS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notebook.md"]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_name_what_the_package_has(path):
    models = pytest.importorskip("rconv.lab.architectures")
    datasets = pytest.importorskip("rconv.data.datasets")
    grids = yaml.safe_load(path.read_text())
    for notebook, grid in grids.items():
        assert (ROOT / "notebooks" / f"{notebook}.md").exists()
        assert set(grid["datasets"]) <= set(datasets.CLASSES)
        assert set(grid["architectures"]) <= set(models.ARCHITECTURES)
    for values in grids["experiment"]["architectures"].values():
        assert set(values["activations"]) <= set(models.ACTIVATIONS)

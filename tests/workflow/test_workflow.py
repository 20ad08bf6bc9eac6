"""One point of the grid: repeatable to the byte, whole or not at all."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
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


sys.path.insert(0, str(ROOT / "workflow"))  # where a script finds its neighbours


def module(name):
    """One of the workflow's scripts, as a new module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "workflow" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def run(tmp_path):
    """The runner, with a notebook of its own."""
    found = module("run")
    found.NOTEBOOKS = tmp_path
    (tmp_path / "notebook.md").write_text(NOTEBOOK)
    return found


def test_a_page_and_its_record_the_same_every_time(run, tmp_path):
    pages = []
    for name in ("first", "second"):
        page, record = tmp_path / f"{name}.ipynb", tmp_path / f"{name}.json"
        run.main("notebook", page, record, PARAMETERS)
        assert json.loads(record.read_text()) == [{"dataset": "Photos"}]
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]


def test_alternative_texts_are_filled_in(run):
    cell = "\n```{code-cell}\n:mystnb:\n:  image:\n:    alt: Images of {dataset}\n\nf\n```\n"
    (run.NOTEBOOKS / "notebook.md").write_text(NOTEBOOK + cell)
    found = run.prepare(run.NOTEBOOKS / "notebook.md", json.loads(PARAMETERS))
    assert found.cells[-1].metadata.mystnb.image.alt == "Images of Photos"


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
    grid = module("grid")
    for notebook, own in grids.items():
        assert (ROOT / "notebooks" / f"{notebook}.md").exists()
        for point in grid.points(own):
            values = grid.parameters(own, *point.split("-"))
            assert values["dataset"] in datasets.CLASSES
            if notebook != "verdict":  # its points are kinds of networks, and of disturbances
                assert values["architecture"] in models.ARCHITECTURES
            assert set(values.get("activations", [])) <= set(models.ACTIVATIONS)


def test_every_published_notebook_is_in_the_papers_grid():
    published = pytest.importorskip("rconv.lab.published")
    grids = yaml.safe_load((ROOT / "workflow" / "grids" / "paper.yaml").read_text())
    found = module("grid").points(grids["published"])
    assert {tuple(point.split("-")) for point in found} == set(published.CELLS)


GRID = {
    "all": {"images": "0:9", "seed": 1},
    "datasets": {"A": {}, "B": {"images": "0:8"}},
    "architectures": {"x": {"images": "0:7"}, "y": {}},
    "pairs": {"A-z": {}, "B-x": {"images": "0:6"}},
}


def test_a_grid_is_a_product_and_pairs():
    assert module("grid").points(GRID) == ["A-x", "A-y", "B-x", "B-y", "A-z"]


@pytest.mark.parametrize(
    "dataset, architecture, images",
    [("A", "y", "0:9"), ("B", "y", "0:8"), ("A", "x", "0:7"), ("B", "x", "0:6"), ("A", "z", "0:9")],
)
def test_each_level_of_a_grid_adds_to_the_one_before(dataset, architecture, images):
    found = module("grid").parameters(GRID, dataset, architecture)
    own = {"dataset": dataset, "architecture": architecture}
    assert found == {"images": images, "seed": 1, **own}


def test_records_are_kept_for_the_points_of_the_grid(tmp_path, monkeypatch):
    for folder in ("workflow/grids", "results/experiment", "book/records/experiment"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workflow/grids/paper.yaml").write_text("experiment: {pairs: {A-x: {}, A-y: {}}}")
    for name in ("A-x", "B-x"):
        (tmp_path / f"results/experiment/{name}.json").write_text('[{"architecture": "lenet"}]')
    for name in ("A-y", "old"):
        (tmp_path / f"book/records/experiment/{name}.json").write_text("{}")
    module("records").main("paper")
    kept = sorted(path.stem for path in (tmp_path / "book/records").glob("*/*"))
    assert kept == ["A-x", "A-y"], "the new one, and the one that has no result now"


def test_every_point_has_the_notebook_that_its_rocket_opens(tmp_path, monkeypatch):
    for name in ("notebooks", "workflow/grids"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks" / "experiment" / "No-longer.ipynb").write_text("{}")
    module("launchable").main()
    made, kept = ({p.relative_to(r): p.read_text() for p in r.glob("notebooks/*/*.ipynb")}
                  for r in (tmp_path, ROOT))  # fmt: skip
    assert made == kept, "run `make notebooks`"
    assert len(made) > 50


def test_such_a_notebook_has_its_points_parameters_and_titles():
    page = nbformat.read(ROOT / "notebooks" / "filters" / "Digits-lenet_main.ipynb", 4)
    (injected,) = (c for c in page.cells if "injected-parameters" in c.metadata.get("tags", []))
    values = {}
    exec(injected.source, values)
    assert (values["dataset"], values["architecture"]) == ("Digits", "lenet_main")
    assert any(c.source.startswith("# ") and "Digits" in c.source for c in page.cells)
    assert not any(cell.get("outputs") for cell in page.cells)

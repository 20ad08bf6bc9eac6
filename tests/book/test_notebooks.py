"""The notebooks run, are short, and agree with their .ipynb."""

import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import jupytext
import matplotlib
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))

# The book's test executes its pages and what the grid runs without data; these are left.
EXECUTED = {
    *re.findall(r"notebooks/(\w+)", (ROOT / "_toc.yml").read_text()),
    *yaml.safe_load((ROOT / "workflow/grids/embedded.yaml").read_text()),
}
HIDDEN = {"hide-input", "remove-input", "remove-cell", "checks"}
CHECK = re.compile("(assert|glue)\\b")
UNEXECUTED = [path for path in NOTEBOOKS if path.stem not in EXECUTED]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    """Sources of the code cells; the first is the set-up cell."""
    return [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]


@pytest.fixture
def clean_state(monkeypatch):
    """What a notebook finds when it starts, and leaves behind nothing of what it sets."""
    torch = pytest.importorskip("torch")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT / "notebooks")
    dtype = torch.get_default_dtype()
    with matplotlib.rc_context(), torch.random.fork_rng(devices=[]):
        yield
    torch.set_default_dtype(dtype)
    pyplot.close("all")


@pytest.mark.parametrize("path", UNEXECUTED, ids=lambda path: path.stem)
def test_runs_from_clean(path, clean_state):
    # In this process, where torch is imported already.
    namespace = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(path)):
        source = re.sub(r"^%.*", "", source, flags=re.MULTILINE)  # magics belong to IPython
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)


def tags(cell):
    return set(cell.metadata.get("tags", ()))


@each_notebook
def test_cells_are_short(path):
    cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    read = [cell for cell in cells[1:] if "checks" not in tags(cell)]  # without the set-up cell
    lengths = [len(cell.source.splitlines()) for cell in read]
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 15
    widest = max(len(line) for source in code_cells(path)[1:] for line in source.splitlines())
    assert widest <= 79, "wider lines do not fit the page"


@each_notebook
def test_what_is_drawn_is_drawn_for_the_page(path):
    code = "\n".join(code_cells(path))
    assert "plt.subplots" not in code or "%load_ext rconv.show.responsive" in code


@each_notebook
def test_few_cells_hide_behind_a_toggle(path):
    cells = [cell for cell in jupytext.read(path).cells if "checks" not in tags(cell)]
    toggles = sum(bool(tags(cell) & {"hide-input", "hide-output", "hide-cell"}) for cell in cells)
    assert toggles <= 3, "what only draws, lays out or glues is tagged remove-input or remove-cell"


@each_notebook
def test_asserts_and_glue_are_folded(path):
    cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    visible = [cell.source for cell in cells if not tags(cell) & HIDDEN]
    checked = [line for source in visible for line in source.splitlines() if CHECK.match(line)]
    assert len(checked) <= 12, "fold them into the checks of the section"


def test_setup_cells_name_the_repository():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    setup = {code_cells(path)[0] for path in NOTEBOOKS}
    assert len(setup) == 1, "set-up cells differ"
    assert f'"{url}"' in setup.pop()


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory):
    """The .ipynb as `make notebooks` writes them now."""
    folder = tmp_path_factory.mktemp("paired")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    names = [f"notebooks/{path.name}" for path in NOTEBOOKS]
    command = [sys.executable, "-m", "jupytext", "--quiet", "--update", "--to", "ipynb", *names]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "notebooks"


@each_notebook
def test_ipynb_is_in_step(path, regenerated):
    ours = path.with_suffix(".ipynb")
    assert ours.exists(), "run `make notebooks`"
    expected = (regenerated / ours.name).read_text()
    assert ours.read_text() == expected, "run `make notebooks`"


@each_notebook
def test_ipynb_holds_no_outputs(path):
    cells = jupytext.read(path.with_suffix(".ipynb")).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_every_ipynb_has_its_source():
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == [
        path.stem for path in NOTEBOOKS
    ]

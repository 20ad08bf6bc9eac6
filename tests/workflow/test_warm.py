"""A warm kernel is a kernel: its state is its own, its folder, streams and errors the caller's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELLS = [
    "import sys; 'rconv.attack.attack' in sys.modules",
    "import os; os.getcwd()",
    "os.environ['ASKED']",
    "print('to stderr', file=sys.stderr)",
    "state = globals().get('state', 0) + 1; state",
    "import local; local.name",
    "import matplotlib.pyplot as plt; plt.plot([0, 1]); plt.show()",
    "os.getpid()",
    "1 / 0",
]

CALLER = """
import json, sys
import nbformat
from nbclient import NotebookClient
found = []
for _ in range(2):
    cells = [nbformat.v4.new_code_cell(source) for source in json.loads(sys.argv[1])]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute(cwd=sys.argv[2])
    found.append([cell.outputs for cell in cells])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the cells show in two kernels, one after the other."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "local.py").write_text("name = 'beside the notebook'")
    caller = [sys.executable, "-c", CALLER, json.dumps(CELLS), str(folder)]
    run = subprocess.run(
        [sys.executable, str(ROOT / "workflow" / "warm.py"), "env", "ASKED=yes", *caller],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    first, second = json.loads(run.stdout)
    return folder, first, second


def text(cell):
    """What a cell shows, in plain text."""
    (output,) = cell
    return output.get("text") or output["data"]["text/plain"]


def test_the_package_is_imported_before_the_first_cell(outputs):
    assert text(outputs[1][0]) == "True"


def test_folder_environment_and_neighbours_are_the_callers(outputs):
    folder, first, _ = outputs
    assert text(first[1]) == repr(str(folder))
    assert text(first[2]) == "'yes'"
    assert text(first[5]) == "'beside the notebook'"


def test_streams_are_told_apart(outputs):
    assert outputs[1][3] == [{"output_type": "stream", "name": "stderr", "text": "to stderr\n"}]


def test_figures_are_shown_inline(outputs):
    assert any("image/png" in output.get("data", {}) for output in outputs[1][6])


def test_every_kernel_starts_anew_and_in_a_process_of_its_own(outputs):
    _, first, second = outputs
    assert text(first[4]) == text(second[4]) == "1"
    assert text(first[7]) != text(second[7])


def test_errors_are_errors(outputs):
    assert outputs[1][8][0]["ename"] == "ZeroDivisionError"


@pytest.mark.parametrize("status", [0, 3])
def test_the_commands_status_is_passed_on(status):
    command = [sys.executable, "-c", f"raise SystemExit({status})"]
    warm = [sys.executable, str(ROOT / "workflow" / "warm.py")]
    assert subprocess.run(warm + command).returncode == status

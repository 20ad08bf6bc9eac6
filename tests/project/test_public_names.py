"""Public names: imported when they are used, and all that a notebook needs."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

import rconv
from rconv.lazy import exports

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "notebooks").glob("*.md")), ROOT / "book" / "index.md", ROOT / "README.md"]
SUBPACKAGES = [part.name for part in pkgutil.iter_modules(rconv.__path__, "rconv.") if part.ispkg]
LAZY = [name for name in ("rconv", *SUBPACKAGES) if exports(name)]
MODULES = {*SUBPACKAGES, "rconv.data.datasets"}  # imported as such, and in no list

each_lazy = pytest.mark.parametrize("package", LAZY)


def imported(source):
    """Pairs of a module of the package and a name that some source imports from it."""
    source = re.sub(r"^[%!].*", "", source, flags=re.MULTILINE)  # magics belong to IPython
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and re.match(r"rconv\b", node.module):
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from ((alias.name, "*") for alias in node.names if alias.name[:5] == "rconv")


def code(path):
    """The Python code of a page, of all its cells or examples."""
    if path.stem == "README":
        return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
    cells = jupytext.read(path).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_a_page_imports_is_a_public_name(path):
    found = set(imported(code(path)))
    assert found
    for package, name in found:
        exec(f"from {package} import {name}")
        if package.startswith("rconv.adapters."):  # one module for each framework
            continue
        assert package in ("rconv", *SUBPACKAGES)
        assert f"{package}.{name}" in MODULES or name in sys.modules[package].__all__


@each_lazy
def test_names_are_what_their_modules_define(package):
    face = importlib.import_module(package)
    assert sorted(exports(package)) == face.__all__ and {*face.__all__, "__all__"} <= {*dir(face)}
    for name, (home, attribute) in exports(package).items():
        if home == package:
            assert getattr(face, name) is importlib.import_module(f"{package}.{name}")
        else:
            assert getattr(face, name) is vars(importlib.import_module(home))[attribute]
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        face.nothing  # noqa: B018


@each_lazy
def test_no_name_is_that_of_a_submodule_with_another_content(package):
    """An imported submodule is an attribute of its package, and hides the name."""
    inside = {part.name for part in pkgutil.iter_modules(importlib.import_module(package).__path__)}
    hidden = {name for name, (home, _) in exports(package).items() if home != package}
    assert not hidden & inside


def test_importing_the_packages_imports_nothing_else():
    code = "".join(f"import {package}; dir({package}), {package}.__all__\n" for package in LAZY)
    code += "import sys; print(*({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"

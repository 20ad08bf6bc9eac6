"""The structure: subpackages that import one way, short functions, types, NumPy's docstrings."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rconv"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = (
    {"files", "lazy", "extras"},
    {"linalg", "model", "data"},
    {"observe", "equations"},
    {"attack"},
    {"audit", "baselines"},
    {"lab"},
    {"show"},
    {"cli", "adapters"},
    {"rconv", "__main__"},  # the public face, and `python -m rconv`
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
NEEDS_NO_IMAGES = {name for name in LEVEL if LEVEL[name] < LEVEL["lab"]} - {"data"}


def name_of(path):
    """`attack.head` for rconv/attack/head.py, `attack` for its folder, `rconv` for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "rconv"


SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in FILES}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
SUBPACKAGES = sorted(
    name_of(path) for path in FILES if path.stem == "__init__" and path.parent != PACKAGE
)

each_module = pytest.mark.parametrize("module", TREES)


def imports(module, tree):
    """Modules of the package that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "rconv":
                yield known(name)


def known(name):
    """The module that `rconv.attack.head.Head`, say, is in."""
    module = name.removeprefix("rconv").removeprefix(".") or "rconv"
    while module not in TREES:
        module = module.rpartition(".")[0] or "rconv"
    return module


ARROWS = {module: set(imports(module, tree)) for module, tree in TREES.items()}


def subpackage(module):
    return module.split(".")[0]


def test_the_parser_sees_imports_of_every_form():
    source = """
import rconv.files, torch
from rconv import audit, Attack
def late():
    from rconv.linalg import dense
    from rconv.attack.head import Head
"""
    found = set(imports("x", ast.parse(source)))
    assert found == {"files", "audit", "rconv", "linalg.dense", "attack.head"}


def test_every_subpackage_has_a_level():
    assert {subpackage(module) for module in TREES} == set(LEVEL)


@each_module
def test_imports_run_down(module):
    wrong = {
        other
        for other in ARROWS[module]
        if subpackage(other) != subpackage(module)
        and LEVEL[subpackage(other)] >= LEVEL[subpackage(module)]
    }
    assert not wrong


@each_module
def test_only_the_lab_and_what_is_above_it_sees_images(module):
    if subpackage(module) == "data":
        assert {subpackage(other) for other in ARROWS[module]} <= {"data", "extras", "files"}
    if subpackage(module) in NEEDS_NO_IMAGES:
        assert not {other for other in ARROWS[module] if subpackage(other) == "data"}


def test_there_are_no_circles():
    tuple(graphlib.TopologicalSorter(ARROWS).static_order())


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_a_subpackage_says_what_belongs_there_and_what_does_not(name):
    text = ast.get_docstring(TREES[name]) or ""
    assert len(re.findall(r"\.(?:\s|$)", text)) >= 2, "two sentences at least"
    assert re.search(r"\b(no|not|nothing|neither|never|only|is in|are in)\b", text, re.I)


@each_module
def test_every_module_has_a_docstring(module):
    assert ast.get_docstring(TREES[module])


VERSION = "from rconv.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass"


@pytest.mark.parametrize("code", ["import rconv", VERSION], ids=["import rconv", "rconv --version"])
def test_starts_without_what_it_does_not_need(code):
    heavy = "torch numpy scipy torchvision matplotlib IPython sklearn skimage".split()
    script = f"{code}\nimport sys\nprint('loaded', *(set({heavy}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "loaded"


def functions(tree, prefix=""):
    """Functions and methods with their names, without those inside functions."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node


def lines_of_code(function, source):
    """Lines of a function without its docstring, blank lines and comments."""
    first = function.body[0]
    docstring = range(0)
    if ast.get_docstring(function) is not None:
        docstring = range(first.lineno, first.end_lineno + 1)
    numbers = set(range(function.lineno, function.end_lineno + 1)) - set(docstring)
    lines = source.splitlines()
    return sum(not re.match(r"\s*(#|$)", lines[number - 1]) for number in numbers)


def test_lines_of_code_are_counted_without_the_rest():
    source = 'def f(\n    x,\n):\n    """Says.\n\n    More.\n    """\n    # why\n\n    return x\n'
    assert lines_of_code(ast.parse(source).body[0], source) == 4


@each_module
def test_functions_are_short(module):
    long = {
        f"{module}.{name}"
        for name, function in functions(TREES[module])
        if lines_of_code(function, SOURCES[module]) > 40
    }
    assert not long


@each_module
def test_public_functions_are_typed(module):
    untyped = set()
    for name, function in functions(TREES[module]):
        if re.search(r"(^|\.)_(?!_)", name):
            continue
        a = function.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
        missing = [x.arg for x in arguments if x and not x.annotation]
        static = any(getattr(d, "id", "") == "staticmethod" for d in function.decorator_list)
        if "." in name and not static:
            missing = [x for x in missing if x not in ("self", "cls")]
        if missing or (function.returns is None and not re.search(r"__(post_)?init__$", name)):
            untyped.add(name)
    assert not untyped


SECTIONS = "Parameters|Other Parameters|Attributes|Returns|Yields|Raises"
LONE_TYPE = r"[A-Za-z][\w.]*(\[.*\])?( or \w+)*"  # may stand without a text where it is returned
TYPE_WIDTH = 50
"""A type is shorter; a description that goes on in the next line is longer."""


def misformed(docstring):
    """Entries of a docstring's sections that are not `name`, or `name : type`, and then a text."""
    lines = docstring.splitlines()
    section, wrong = "", []
    for number, line in enumerate(lines):
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if re.fullmatch("-{3,}", after):
            section = line if re.fullmatch(SECTIONS, line) else ""
        elif section and line and not line.startswith((" ", "---")):
            _, _, kind = line.partition(" : ")
            described = after.startswith("    ") and after.strip()
            if section in ("Returns", "Yields") and re.fullmatch(LONE_TYPE, line):
                described = True
            if not described or kind.endswith(".") or len(kind) > TYPE_WIDTH:
                wrong.append(line)
    return wrong


def documented(tree):
    """Docstrings of a module, its classes and its functions."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text]


@pytest.mark.parametrize(
    ("entry", "right"),
    [
        ("x : Tensor\n    The unknown.", True),
        ("x, y\n    Two of them.", True),
        ("ValueError\n    Where it is short.", True),
        ("x : the unknown.", False),
        ("x : the unknown of the equations, as long as the image has\n    entries.", False),
        ("The unknown.", False),
        ("x : Tensor\n\n    The unknown.", False),
        ("x", False),
    ],
)
def test_what_is_no_entry_is_recognised(entry, right):
    assert (not misformed(f"Says.\n\nParameters\n----------\n{entry}\n")) is right


def test_what_is_returned_may_be_a_type_alone():
    assert not misformed("Says.\n\nReturns\n-------\nSolution\n\nRaises\n------\nA\n    Why.")
    assert misformed("Says.\n\nReturns\n-------\nThe solution.\n")


@each_module
def test_docstrings_are_numpys(module):
    assert [line for text in documented(TREES[module]) for line in misformed(text)] == []


@each_module
def test_fields_of_dataclasses_are_documented_once_as_parameters(module):
    classes = (node for node in ast.walk(TREES[module]) if isinstance(node, ast.ClassDef))
    twice = {
        node.name
        for node in classes
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        and "Attributes\n---" in (ast.get_docstring(node) or "")
    }
    assert not twice

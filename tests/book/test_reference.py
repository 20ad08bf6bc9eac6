"""The reference lists every module, and what pages say of the package is in it."""

import contextlib
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import rconv
import rconv.files
from rconv.attack.attack import Attack

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("notebooks/*.md"), *ROOT.glob("book/*.md"), *ROOT.glob("*.md")]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture
def reference(monkeypatch):
    """The Sphinx extension that writes the reference."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    yield importlib.import_module("reference")
    sys.modules.pop("reference")


def test_the_reference_lists_every_module_once_below_its_wing(reference, tmp_path):
    reference.write(tmp_path / "api")
    pages = {path.stem: path.read_text() for path in sorted((tmp_path / "api").iterdir())}
    listed = {name: re.findall(r"^\.\. automodule:: (\S+)$", text, re.M)
              for name, text in pages.items()}  # fmt: skip
    every = [name for names in listed.values() for name in names]
    files = (path for path in (ROOT / "rconv").rglob("*.py") if path.stem != "__main__")
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    modules = {name.removesuffix(".__init__") for name in names} - {"rconv"}
    assert len(every) == len(set(every)) and set(every) == modules
    assert [names[0] for names in listed.values()] == list(reference.subpackages())
    assert listed["01_linalg"][0] == "rconv.linalg" and "rconv.attack.head" in every
    assert all(name.startswith(names[0]) for names in listed.values() for name in names)
    assert all(re.findall(r"^# ", text, re.M) == ["# "] for text in pages.values())


def test_only_pages_that_changed_are_written_and_what_is_gone_goes(reference, tmp_path):
    folder = tmp_path / "api"
    reference.write(folder)
    first, second, *_ = sorted(folder.iterdir())
    untouched = first.stat().st_mtime_ns
    second.write_text("stale")
    (folder / "99_gone.md").write_text("a wing that was")
    reference.write(folder)
    assert first.stat().st_mtime_ns == untouched
    assert "automodule" in second.read_text() and not (folder / "99_gone.md").exists()


def test_a_name_leads_to_its_lines_in_the_repository(reference):
    resolve = reference.source("https://host/owner/name", "main")
    link = resolve("py", {"module": "rconv.attack.attack", "fullname": "Attack.__call__"})
    path, first, last = re.fullmatch(
        r"https://host/owner/name/blob/main/(.+)#L(\d+)-L(\d+)", link
    ).groups()
    lines = (ROOT / path).read_text().splitlines()[int(first) - 1 : int(last)]
    assert lines[0].lstrip().startswith(("@", "def __call__"))
    assert resolve("py", {"module": "rconv.lab.false_positives", "fullname": "CASES"}) is None


def test_a_package_lists_its_public_names_and_where_they_are_documented(reference):
    package, module = ["A package."], ["A module."]
    reference.process_docstring(None, "module", "rconv", rconv, None, package)
    reference.process_docstring(None, "module", "rconv.files", rconv.files, None, module)
    assert ":py:obj:`Attack <rconv.attack.attack.Attack>`, " in package[1]
    assert module == ["A module."]


def lookup(path):
    """The module that a dotted path leads into, and the object at its end."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(".".join(parts[:end]))
            return module, functools.reduce(getattr, parts[end:], module)
    raise ModuleNotFoundError(path)


@each_page
def test_what_a_page_refers_to_is_in_the_reference(page):
    text = page.read_text(encoding="utf-8")
    missing = set()
    for kind, target in re.findall(r"\{py:(\w+)\}`(?:[^`<]*<)?([\w.]+)>?`", text):
        try:
            module, found = lookup(target)
        except AttributeError:
            missing.add(target)
            continue
        home = getattr(found, "__module__", module.__name__) if kind != "mod" else target
        documented = kind in ("mod", "data", "attr") or found.__doc__
        if home != module.__name__ or not documented:
            missing.add(target)
    assert not missing


@each_page
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    missing = set()
    for target in re.findall(r"`(rconv(?:\.\w+)+)(?:\(.*?\))?`", text):
        try:
            lookup(target)
        except (AttributeError, ModuleNotFoundError):
            missing.add(target)
    assert not missing


@functools.cache
def classes():
    """Name → classes of the package that are called so."""
    found = {}
    for module in pkgutil.walk_packages(rconv.__path__, "rconv."):
        if module.name != "rconv.__main__":
            members = vars(importlib.import_module(module.name)).values()
            for kind in (m for m in members if inspect.isclass(m)):
                if kind.__module__ == module.name:
                    found.setdefault(kind.__name__, []).append(kind)
    return found


def attributes(kind):
    """What an instance of a class has: methods, properties, and fields of its dataclasses."""
    annotated = (vars(base).get("__annotations__", {}) for base in kind.__mro__)
    return {*dir(kind), *(name for names in annotated for name in names)}


@each_page
def test_attributes_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = {
        f"{name}.{attribute}"
        for name, attribute in re.findall(r"`([A-Z]\w+)\.(\w+)", text)
        if name in classes() and not any(attribute in attributes(kind) for kind in classes()[name])
    }
    assert not missing


def test_a_stale_name_is_found():
    assert "value" in attributes(*classes()["HeadInput"])
    assert "nothing" not in attributes(Attack)
    assert lookup("rconv.attack.attack.Attack")[1].__name__ == "Attack"
    assert lookup("rconv.audit.gradient_rank")[0].__name__ == "rconv.audit"
    with pytest.raises(AttributeError):
        lookup("rconv.attack.nothing")

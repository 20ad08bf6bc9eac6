"""The reference lists every module, and what pages say of the package is in it."""

import contextlib
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import rconv
from rconv.attack.attack import Attack

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("notebooks/*.md"), *ROOT.glob("book/*.md"), *ROOT.glob("*.md")]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture
def reference(monkeypatch):
    """The Sphinx extension that writes the reference."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    yield importlib.import_module("reference")
    sys.modules.pop("reference")


def test_the_reference_lists_every_module_once_below_its_wing(reference):
    app, source = SimpleNamespace(env=SimpleNamespace()), ["# The package\n"]
    reference.write(app, "book/api", source)
    listed = re.findall(r"^\.\. automodule:: (\S+)$", source[0], re.M)
    files = (path for path in (ROOT / "rconv").rglob("*.py") if path.stem != "__main__")
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    modules = {name.removesuffix(".__init__") for name in names} - {"rconv"}
    assert len(listed) == len(set(listed)) and set(listed) == modules
    last = [name for name in listed if name.count(".") == 1]
    assert last == list(reference.wings()) and last[0] == "rconv.linalg"
    assert listed.index("rconv.attack.head") - 1 >= listed.index("rconv.attack")
    assert re.findall(r"^(#+) ", source[0], re.M).count("##") == len(last)


def test_a_page_of_its_own_is_left_alone(reference):
    source = ["text"]
    reference.write(SimpleNamespace(), "book/glossary", source)
    assert source == ["text"]


def test_the_reference_is_read_anew_where_a_module_came_or_went(reference):
    env = SimpleNamespace(rconv_wings=reference.wings())
    assert reference.note_new(None, env, (), (), ()) == []
    del env.rconv_wings["rconv.attack"][0]
    assert reference.note_new(None, env, (), (), ()) == ["book/api"]
    assert reference.note_new(None, SimpleNamespace(), (), (), ()) == ["book/api"]


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

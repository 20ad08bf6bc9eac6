"""Sphinx extension: the reference, written from the package as it is.

Behind the text of `book/api.md` come the wings in the order in which the package's docstring
names them, each with its own docstring and its modules. Nothing has to be listed by hand.
"""

import pkgutil
import re

import rconv

PAGE = "book/api"


def wings():
    """Wing → its modules, in the docstring's order; what it does not name comes last."""
    named = re.findall(r"`rconv\.(\w+)`", rconv.__doc__)
    found = {wing.name: wing for wing in pkgutil.iter_modules(rconv.__path__, "rconv.")}
    names = dict.fromkeys([f"rconv.{name}" for name in named] + sorted(found))
    return {name: list(modules(found[name])) for name in names if "._" not in name}


def modules(wing):
    """Names of the modules inside a wing, none where the wing is a single file."""
    if wing.ispkg:
        folder = [f"{wing.module_finder.path}/{wing.name.rpartition('.')[2]}"]
        inside = pkgutil.iter_modules(folder, f"{wing.name}.")
        yield from (module.name for module in inside if "._" not in module.name)


def section(level, name):
    """Markdown of one wing or module."""
    return f"\n{'#' * level} `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def write(app, docname, source):
    """Put the sections below what the page says."""
    if docname == PAGE:
        app.env.rconv_wings = wings()
        for wing, inside in wings().items():
            source[0] += section(2, wing) + "".join(section(3, name) for name in inside)


def note_new(app, env, added, changed, removed):
    """Read the page anew where a module came or went."""
    return [PAGE] if getattr(env, "rconv_wings", None) != wings() else []


def setup(app):
    """Connect to the events."""
    app.connect("source-read", write)
    app.connect("env-get-outdated", note_new)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

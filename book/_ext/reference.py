r"""Sphinx extension: the reference, written from the package as it is.

A page for every subpackage, in the order in which the package's docstring names them: its own
docstring and its modules. They lie in `book/api`, and nothing has to be listed by hand. Each name
leads to its source in the repository. Plain text stays plain in docstrings: outside backticks,
neither the lone asterisk of (N, \*shape) nor the bars of \|x\| mean what they mean in
reStructuredText.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import rconv  # its face alone, which imports nothing
from rconv.lazy import exports

FOLDER = Path("book", "api")
MARKED = re.compile(r"(``.+?``|`.+?`)")


def subpackages():
    """Subpackage → its modules, in the docstring's order; what it does not name comes last."""
    found = {part.name: part for part in pkgutil.iter_modules(rconv.__path__, "rconv.")}
    named = re.findall(r"`(rconv\.\w+)`", rconv.__doc__)
    names = dict.fromkeys([*named, *sorted(found)])
    return {name: list(modules(found[name])) for name in names if "._" not in name}


def modules(part):
    """Names of the modules inside a subpackage, none where it is a single file."""
    if part.ispkg:
        folder = str(Path(part.module_finder.path, part.name.rpartition(".")[2]))
        inside = pkgutil.iter_modules([folder], f"{part.name}.")
        yield from (module.name for module in inside if "._" not in module.name)


def section(level, name):
    """Markdown of one subpackage or module."""
    return f"\n{'#' * level} `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def write(folder):
    """Write the pages that changed, and remove those of subpackages that are gone."""
    folder.mkdir(exist_ok=True)
    pages = {
        folder / f"{number:02}_{part.rpartition('.')[2]}.md": section(1, part)
        + "".join(section(2, name) for name in inside)
        for number, (part, inside) in enumerate(subpackages().items(), 1)
    }
    for old in set(folder.glob("*.md")) - set(pages):
        old.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def source(url, branch):
    """Where the source of a Python object stands in the repository, for `sphinx.ext.linkcode`."""

    def resolve(domain, info):
        found = module = importlib.import_module(info["module"])
        path = module.__name__.replace(".", "/")
        path += "/__init__.py" if hasattr(module, "__path__") else ".py"
        try:
            for name in info["fullname"].split("."):
                found = getattr(found, name)
            lines, first = inspect.getsourcelines(inspect.unwrap(found))
        except (AttributeError, TypeError, OSError):
            return None  # a field or a constant stands where its class or module does
        return f"{url}/blob/{branch}/{path}#L{first}-L{first + len(lines) - 1}"

    return resolve


def connect(app, config):
    """Tell `sphinx.ext.linkcode` the repository that the theme knows."""
    theme = config.html_theme_options
    config.linkcode_resolve = source(theme["repository_url"], theme["repository_branch"])


def plain(line):
    """The line with the characters escaped that it does not use as markup."""
    parts = MARKED.split(line)
    lone = sum(part.count("*") for part in parts[::2]) == 1
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    if lone:
        parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    return "".join(parts)


def public(package):
    """The names that are imported from a package, with links to where they are documented."""
    for name, (module, attribute) in sorted(exports(package).items()):
        yield f":py:obj:`{name} <{module}.{attribute}>`"


def process_docstring(app, what, name, obj, options, lines):
    """Rewrite one docstring in place."""
    lines[:] = [plain(line) for line in lines]
    if hasattr(obj, "__path__") and (names := ", ".join(public(name))):
        lines += [f"``from {name} import``: {names}.", ""]


def setup(app):
    """Write the pages now: the table of contents is read next."""
    write(Path(app.srcdir) / FOLDER)
    app.setup_extension("sphinx.ext.linkcode")
    app.connect("config-inited", connect)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # napoleon has 500
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}

"""Sphinx extension: the reference, written from the package as it is.

A page for every wing, in the order in which the package's docstring names them: its own docstring
and its modules. They lie in `book/api`, and nothing has to be listed by hand. Each name leads to
its source in the repository.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

FOLDER = Path("book", "api")


def wings():
    """Wing → its modules, in the docstring's order; what it does not name comes last.

    The package is not imported: a build without a change would wait for it.
    """
    package = importlib.util.find_spec("rconv")
    said = ast.get_docstring(ast.parse(Path(package.origin).read_text(encoding="utf-8")))
    found = {w.name: w for w in pkgutil.iter_modules(package.submodule_search_locations, "rconv.")}
    named = (f"rconv.{name}" for name in re.findall(r"`rconv\.(\w+)`", said))
    names = dict.fromkeys([*named, *sorted(found)])
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


def write(folder):
    """Write the pages that changed, and remove those of wings that are gone."""
    folder.mkdir(exist_ok=True)
    pages = {
        folder / f"{number:02}_{wing.rpartition('.')[2]}.md": section(1, wing)
        + "".join(section(2, name) for name in inside)
        for number, (wing, inside) in enumerate(wings().items(), 1)
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


def setup(app):
    """Write the pages now: the table of contents is read next."""
    write(Path(app.srcdir) / FOLDER)
    app.setup_extension("sphinx.ext.linkcode")
    app.connect("config-inited", connect)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

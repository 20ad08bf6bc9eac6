"""Sphinx extension: buttons of pages that have no file of their name in the repository.

The theme links every page to a file of its own name. A page that the grid made is not in the
repository: its rocket opens the notebook that `workflow/launchable.py` writes for this very point,
and the pencil the parameterised notebook that all its points come from. The front page has no
.ipynb: from there a reader starts at the whole attack. A page of the reference is written from
the docstrings, so its pencil opens the wing's first one.
"""

import re
from pathlib import Path

FRONT = "book/index"
START = "notebooks/recursion.ipynb"
POINT = re.compile(r"book/(\w+)/([\w-]+)")
WING = re.compile(r"book/api/\d+_(\w+)")


def targets(pagename, root):
    """What a page's rocket and pencil open, or None where the theme is right."""
    if pagename == FRONT:
        return START, f"{FRONT}.md"
    if wing := WING.fullmatch(pagename):
        package = f"rconv/{wing[1]}"
        return None, f"{package}/__init__.py" if Path(root, package).is_dir() else f"{package}.py"
    point = POINT.fullmatch(pagename)
    if point is None:
        return None
    notebook = f"notebooks/{point[1]}"
    own = f"{notebook}/{point[2]}.ipynb"
    return own if Path(root, own).exists() else f"{notebook}.ipynb", f"{notebook}.md"


def rewrite(app, pagename, templatename, context, doctree):
    """Exchange the path at the end of every such link."""
    found = targets(pagename, app.srcdir)
    groups = {group.get("label"): group for group in context.get("header_buttons", [])}
    for label, target in zip(("launch-buttons", "source-buttons"), found or (), strict=False):
        for button in groups.get(label, {"buttons": []})["buttons"]:
            if "/issues/" not in button["url"]:  # its title names the page itself
                button["url"] = re.sub(rf"{pagename}\.(ipynb|md)", target, button["url"])


def setup(app):
    """Connect after the theme, whose own handlers have priority 501."""
    app.connect("html-page-context", rewrite, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

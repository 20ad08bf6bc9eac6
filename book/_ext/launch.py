"""Sphinx extension: launch buttons of pages without a notebook of their own open another one.

The theme links every page to a file of the same name in the repository. The experiment pages
are not in the repository: theirs is a parameterised notebook. The front page has no .ipynb:
from there a reader starts at the whole attack.
"""

import re

GENERATED = re.compile(
    r"book/(experiment|filters|comparison|published|initialisation|defences|verdict)/"
)
FRONT = "book/index"
START = "notebooks/07_recursion.ipynb"


def rewrite(app, pagename, templatename, context, doctree):
    """Exchange the path at the end of every launch link of such a page."""
    generated = GENERATED.match(pagename)
    if pagename != FRONT and not generated:
        return
    notebook = f"notebooks/{generated[1]}.ipynb" if generated else START
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                button["url"] = re.sub(rf"{pagename}\.(ipynb|md)", notebook, button["url"])


def setup(app):
    """Connect after the theme, whose own handlers have priority 501."""
    app.connect("html-page-context", rewrite, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""Sphinx extension: launch buttons of the generated pages open the notebook they came from.

The theme links every page to a file of the same name in the repository. The experiment pages
are not in the repository: theirs is the parameterised notebook.
"""

GENERATED = "book/experiments/"
NOTEBOOK = "notebooks/experiment.ipynb"


def rewrite(app, pagename, templatename, context, doctree):
    """Exchange the path at the end of every launch link of a generated page."""
    if not pagename.startswith(GENERATED):
        return
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                button["url"] = button["url"].replace(f"{pagename}.ipynb", NOTEBOOK)


def setup(app):
    """Connect after the theme, whose own handlers have priority 501."""
    app.connect("html-page-context", rewrite, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""Sphinx extension: every page shows the version of the package that it was built from."""

import tomllib
from pathlib import Path

FOOTER = '<p>Version {version}: <a href="{url}">what changed</a></p>'


def read(app, config):
    """Take the version from pyproject.toml, where it is kept."""
    text = Path(app.srcdir, "pyproject.toml").read_text(encoding="utf-8")
    config.version = config.release = tomllib.loads(text)["project"]["version"]


def show(app, pagename, templatename, context, doctree):
    """Put it below the page, with a link to the page of changes."""
    url = context["pathto"]("book/changelog")
    context["theme_extra_footer"] = FOOTER.format(version=app.config.version, url=url)


def setup(app):
    """Connect to the events."""
    app.connect("config-inited", read)
    app.connect("html-page-context", show, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

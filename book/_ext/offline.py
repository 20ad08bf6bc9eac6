"""Sphinx extension: mathematics without a network.

MathJax 3.2.2 comes out of the sphinx-mathjax-offline wheel. Of its 24 MB the book needs 2: the
component that reads TeX and writes HTML, its fonts, and the TeX extensions that it loads on
demand (`\\boldsymbol` is one: without them a single use leaves a whole page unrendered).
"""

import importlib.util
from pathlib import Path

from sphinx.util.fileutil import copy_asset

PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")


def mathjax():
    """The folder of MathJax inside the installed wheel, whose name has hyphens."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    return Path(package.origin).parent / "static" / "mathjax"


def copy(app, exception):
    """Copy MathJax beside the pages once they are written."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir, "_static", "mathjax")
        for part in PARTS:
            copy_asset(mathjax() / part, (target / part).parent if "." in part else target / part)


def setup(app):
    """Point Sphinx at the local copy."""
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("build-finished", copy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

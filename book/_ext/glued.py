"""Sphinx extension: numbers that the text quotes with a format are written as 7·10⁻⁷ too.

MyST-NB formats them as Python does. Those that a notebook glues as text, and those of tables, are
written so already.
"""

from pathlib import Path
from runpy import run_path

from docutils import nodes

# The file alone: with its package PyTorch would come, in every build.
NUMBERS = Path(__file__).parents[2] / "rconv" / "show" / "numbers.py"
scientific = run_path(str(NUMBERS))["scientific"]


def write(app, doctree, docname):
    """Rewrite what was pasted into the text."""
    for pasted in doctree.findall(nodes.inline):
        if "pasted-text" in pasted["classes"]:
            for text in list(pasted.findall(nodes.Text)):
                text.parent.replace(text, nodes.Text(scientific(text.astext())))


def setup(app):
    """Connect to the event behind which the text stands."""
    app.connect("doctree-resolved", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

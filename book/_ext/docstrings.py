r"""Sphinx extension: plain text stays plain in the package's docstrings.

Outside backticks, neither the lone asterisk of (N, \*shape) nor the bars of \|x\| mean what they
mean in reStructuredText.
"""

import re

MARKED = re.compile(r"(``.+?``|`.+?`)")


def plain(line):
    """The line with the characters escaped that it does not use as markup."""
    parts = MARKED.split(line)
    lone = sum(part.count("*") for part in parts[::2]) == 1
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    if lone:
        parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    return "".join(parts)


def process(app, what, name, obj, options, lines):
    """Rewrite one docstring in place."""
    lines[:] = [plain(line) for line in lines]


def setup(app):
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

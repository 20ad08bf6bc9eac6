"""Sphinx extension: the package's docstrings, read the way they are written.

Types are in the signatures, so in `name : what it is` a description follows the colon, where
NumPy's convention expects a type: it goes to a line of its own. The attributes of a dataclass are
its parameters: called so, they are listed once. And plain text stays plain: neither the lone
asterisk of `(N, *shape)` nor the bars of `|x|` mean what they mean in reStructuredText. All this
happens before napoleon looks.
"""

import dataclasses
import re

SECTION = re.compile(r"(Parameters|Attributes|Returns|Yields|Raises)$")
ENTRY = re.compile(r"(\S.*?) : (.+)$")


def separate(lines):
    """The lines of a docstring with every `name : text` of its sections on two lines."""
    inside = False
    for number, line in enumerate(lines):
        if lines[number + 1 : number + 2] and re.match(r"-{3,}$", lines[number + 1]):
            inside = bool(SECTION.match(line))
        entry = ENTRY.match(line) if inside else None
        yield from (entry[1], f"    {entry[2]}") if entry else (line,)


def plain(line):
    """The line with the characters escaped that it does not use as markup."""
    line = line.replace("|", r"\|")
    return line.replace("*", r"\*") if line.count("*") == 1 else line


def process(app, what, name, obj, options, lines):
    """Rewrite one docstring in place."""
    lines[:] = [line if "`" in line else plain(line) for line in separate(lines)]
    if what == "class" and dataclasses.is_dataclass(obj) and "Attributes" in lines:
        start = lines.index("Attributes")
        lines[start : start + 2] = ["Parameters", "----------"]


def setup(app):
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

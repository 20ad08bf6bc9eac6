"""Sphinx extension: what pages write as plain text becomes captions, and numbers like 7·10⁻⁷.

A page writes the caption as the paragraph behind a cell, or a table, which begins with *Figure.*
or *Table.*, so that Jupyter shows it too. Here it becomes a caption with a number, below what it
speaks of. Drawings inside the page, which are no `<img>`, take over the cell's `mystnb.image.alt`.
A table of more than `LONG` rows is folded behind its caption, except on the pages of the grid.
Terms of the glossary show their first sentence under the pointer.
Numbers that the text quotes with a format are written as Python does by MyST-NB; those that a
notebook glues as text, and those of tables, have their powers of ten already.
"""

from html import escape
from pathlib import Path
from runpy import run_path

from docutils import nodes

# The file alone: with its package PyTorch would come, in every build.
NUMBERS = Path(__file__).parents[2] / "rconv" / "show" / "numbers.py"
scientific = run_path(str(NUMBERS))["scientific"]

GLOSSARY = "book/glossary"

LONG = 12
"""Rows that a table shows without being opened."""

DRAWN = '<div class="rconv-figure" role="img"'


class numbered_table(nodes.figure):
    """A table, or what a cell shows as one, with its caption below: it may be wide, and scroll."""


KINDS = {"Figure.": nodes.figure, "Table.": numbered_table}


def number(app, doctree):
    """Turn the paragraphs into captions; Sphinx numbers them."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        first = paragraph[0] if len(paragraph) else None
        if isinstance(first, nodes.emphasis) and first.astext() in KINDS:
            content = spoken_of(paragraph)
            if content is not None:  # a page of kept records may have nothing to show
                wrap(doctree, content, paragraph, KINDS[first.astext()])
                if app.env.docname.startswith("notebooks/"):
                    fold(content)


def spoken_of(paragraph):
    """What stands above a caption: a cell's output, one glued from elsewhere, or a table.

    Cells that show nothing may stand between.
    """
    siblings = paragraph.parent.children
    for above in reversed(siblings[: siblings.index(paragraph)]):
        glued = isinstance(above, nodes.container) and above.get("nb_element") == "mime_bundle"
        if glued or isinstance(above, nodes.table):
            return above
        if not isinstance(above, nodes.container | nodes.comment | nodes.target):
            return None
        outputs = [own for own in above.children if "cell_output" in own.get("classes", ())]
        if outputs:
            return outputs[-1]
    return None


def wrap(doctree, content, paragraph, kind):
    """Put a node and its caption together."""
    count = sum(1 for _ in doctree.findall(kind))
    name = "figure" if kind is nodes.figure else "table"
    figure = kind(ids=[f"{name}-{count + 1}"])
    caption = nodes.caption("", "", *paragraph.children[1:])
    caption.source, caption.line = paragraph.source, paragraph.line
    if isinstance(caption[0], nodes.Text):
        caption[0] = nodes.Text(caption[0].astext().lstrip())
    paragraph.parent.remove(paragraph)
    content.replace_self(figure)
    figure += [content, caption]


def fold(content):
    """Show a long table on demand only."""
    bodies = list(content.findall(nodes.tbody))
    rows = max((len(body.children) for body in bodies), default=0)
    if rows > LONG:
        figure, opening = content.parent, "<details class='rconv-long'><summary>"
        opening += f"Show the table ({rows} rows)</summary>"
        place = figure.index(content)
        figure.insert(place + 1, nodes.raw("", "</details>", format="html"))
        figure.insert(place, nodes.raw("", opening, format="html"))


def describe(app, doctree, docname):
    """Give drawings the alternative text of their cell."""
    for raw in doctree.findall(nodes.raw):
        cell = raw.parent
        while cell is not None and "cell_metadata" not in cell:
            cell = cell.parent
        if cell is not None and DRAWN in raw.astext():
            mystnb = cell["cell_metadata"].get("mystnb", {})
            alt = escape(mystnb.get("image", {}).get("alt", ""))
            raw.children = [nodes.Text(raw.astext().replace(DRAWN, f'{DRAWN} aria-label="{alt}"'))]


def explain(app, doctree, docname):
    """Give links into the glossary the first sentence of its entry as their title."""
    targets = {link: link.get("refuri", "") for link in doctree.findall(nodes.reference)}
    terms = {link: to.split("#")[1] for link, to in targets.items() if "#term-" in to}
    known = meanings(app.env) if terms else {}
    for link, anchor in terms.items():
        link["reftitle"] = known.get(anchor, "")


def meanings(env):
    """Anchor of a term → the first sentence of its entry."""
    items = env.get_doctree(GLOSSARY).findall(nodes.definition_list_item)
    return {
        anchor: f"{item[-1].astext().split('. ')[0].rstrip('.')}."
        for item in items
        for term in item.findall(nodes.term)
        for anchor in term["ids"]
    }


def write_numbers(app, doctree, docname):
    """Rewrite what was pasted into the text."""
    for pasted in doctree.findall(nodes.inline):
        if "pasted-text" in pasted["classes"]:
            for text in list(pasted.findall(nodes.Text)):
                text.parent.replace(text, nodes.Text(scientific(text.astext())))


def setup(app):
    """Connect to the events; the numbers are Sphinx's own."""
    app.add_enumerable_node(
        numbered_table,
        "table",
        html=(
            lambda self, node: self.visit_figure(node),
            lambda self, node: self.depart_figure(node),
        ),
    )
    app.connect("doctree-read", number)
    app.connect("doctree-resolved", describe)
    app.connect("doctree-resolved", explain)
    app.connect("doctree-resolved", write_numbers)
    return {"version": "3", "parallel_read_safe": True, "parallel_write_safe": True}

"""Sphinx extension: the buttons at the top of a page, the links and the version at its end.

The theme links every page to a file of its own name. A page that the grid made is not in the
repository: its rocket opens the notebook that `workflow/launchable.py` writes for this very point,
and the pencil the parameterised notebook that all its points come from. The front page has no
.ipynb: from there a reader starts at the whole attack. A page of the reference is written from
the docstrings, so its pencil opens the subpackage's first one. A page with code is downloaded as a
notebook; its Markdown stands behind the pencil. At its end a page leads to the next one of the
table of contents, without the grid's pages, each of which leads back to their index.
"""

import re
import tomllib
from pathlib import Path

FRONT = "book/index"
START = "notebooks/recursion.ipynb"
POINT = re.compile(r"book/(\w+)/([\w-]+)")
INDEX = "notebooks/experiments"
"""Lists the pages that the grid made."""

FOOTER = '<p>Version {version}: <a href="{url}">what changed</a></p>'
SUBPACKAGE = re.compile(r"book/api/\d+_(\w+)")


def targets(pagename, root):
    """What a page's rocket and pencil open, or None where the theme is right."""
    if pagename == FRONT:
        return START, f"{FRONT}.md"
    if part := SUBPACKAGE.fullmatch(pagename):
        package = f"rconv/{part[1]}"
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


def offer_one(app, pagename, templatename, context, doctree):
    """Leave one file to download: none where the rocket opens the notebook of a point."""
    less = set()
    if context.get("ipynb_source"):
        less.add("download-source-button")
    if POINT.fullmatch(pagename):
        less |= {"download-source-button", "download-notebook-button"}
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            group["buttons"] = [b for b in group["buttons"] if b["label"] not in less]


def neighbour(relations, pagename, side):
    """The page before (1) or after (2) in the table of contents that the grid did not make."""
    name = relations[pagename][side]
    while name is not None and is_point(name):
        name = relations[name][side]
    return name


def is_point(pagename):
    """Whether the grid made a page."""
    return bool(POINT.fullmatch(pagename)) and not SUBPACKAGE.fullmatch(pagename)


def lead_on(app, pagename, templatename, context, doctree):
    """Choose the pages before and after this one."""
    relations = app.env.collect_relations()
    if pagename not in relations:
        return
    names = [neighbour(relations, pagename, side) for side in (1, 2)]
    if is_point(pagename):
        names = [INDEX, None]
    for key, name in zip(("prev", "next"), names, strict=True):
        context[key] = name and {
            "link": context["pathto"](name),
            "title": app.builder.render_partial(app.env.titles[name])["title"],
        }


def read_version(app, config):
    """Take the version from pyproject.toml, where it is kept."""
    text = Path(app.srcdir, "pyproject.toml").read_text(encoding="utf-8")
    config.version = config.release = tomllib.loads(text)["project"]["version"]


def show_version(app, pagename, templatename, context, doctree):
    """Put it below the page, with a link to the page of changes."""
    url = context["pathto"]("book/changelog")
    context["theme_extra_footer"] = FOOTER.format(version=app.config.version, url=url)


def setup(app):
    """Connect after the theme, whose own handlers have priority 501."""
    app.connect("config-inited", read_version)
    for change in (rewrite, offer_one, lead_on, show_version):
        app.connect("html-page-context", change, priority=900)
    return {"version": "3", "parallel_read_safe": True, "parallel_write_safe": True}

"""Sphinx extension: the book carries nothing that no page needs.

After the pages are written: source maps and translations go; pages lose the theme's indentation
and comments; pictures are packed as WebP, without loss, where that is less, and are files where
they are large; icons come from the theme's fonts, with only the signs that the book uses, and not
from the theme's script of 1.5 MB that draws all of them anew; stylesheets keep the rules that can
match something; the notebooks to download are without outputs, as in the repository. Files that
are slim already stay as they are.
"""

import base64
import hashlib
import io
import logging
import os
import re
from pathlib import Path

import minify_html
import nbformat
from fontTools import subset
from PIL import Image

ALPHABETS = {
    "Fraktur": {"mathfrak", "frak"},
    "SansSerif": {"mathsf", "textsf"},
    "Script": {"mathscr"},
    "Typewriter": {"mathtt", "texttt", "tt"},
}
"""Fonts of KaTeX, and the commands that need them."""

FONTS = "vendor/fontawesome/webfonts"
UNUSED = ("**/*.map", "locales", f"{FONTS}/*.woff2", "scripts/fontawesome.js")
STYLES = ("styles/pydata-sphinx-theme.css", "sphinx-design.min.css", "mystnb.*.css")
SCRIPT = re.compile(r"\s*(<!-- So that users can add custom icons -->\s*)?"
                    r'<script src="[^"]*scripts/fontawesome\.js[^"]*"></script>')  # fmt: skip
FACE = re.compile(r'(url\([^)]*\.)woff2\) format\("woff2"\),url\([^)]*\.ttf\) format\("truetype"\)')
SIGN = re.compile(r"\\(f[0-9a-f]{3}|e[0-9a-f]{3})\b")
PRIVATE = re.compile("[\ue000-\uf8ff]")
KEPT = {"keep_html_and_head_opening_tags": True}
"""What a page could do without, and extensions of browsers could not."""

SLIM = "<!doctype html><"
"""How a page begins that is slim already."""

WORD = re.compile(r"[\w-]+")
PLAIN = re.compile(r'<span class="(?:n|p|w|pre)">([^<]*)</span>')
"""Names, punctuation and spaces in code look as what is around them."""

PICTURE = re.compile(r"[\w-]+\.png\b")
INLINE = re.compile(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)")

INSIDE = 2_000
"""Bytes from which a picture is a file of its own, a quarter smaller: in a page it is base64."""

STRING = r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
TOKEN = re.compile(rf"{STRING}|[{{}};]|[^{{}};\"']+")
NESTED = re.compile(rf"{STRING}|\[[^]]*\]|\((?:[^()]|\([^()]*\))*\)")
CLASS = re.compile(r"\.((?:\\.|[\w-])+)")
GROUPS = ("@media", "@supports", "@layer", "@container")
"""At-rules whose block holds rules again."""


def webp(png):
    """The same pixels in half the bytes."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGBA").save(packed, "WEBP", lossless=True, quality=50, method=3)
    return packed.getvalue()


def slim_inline(path, images):
    """What stands for a picture in the page itself: a file, or less of the same."""

    def change(found):
        png = base64.b64decode(found[1])
        packed = webp(png)
        if len(packed) > INSIDE:
            name = f"{hashlib.sha1(packed).hexdigest()}.webp"
            (images / name).write_bytes(packed)
            return os.path.relpath(images / name, path.parent)
        kinds = {"webp": packed, "png": png}
        kind = min(kinds, key=lambda name: len(kinds[name]))
        return f"data:image/{kind};base64,{base64.b64encode(kinds[kind]).decode()}"

    return change


def slim_pictures(images):
    """WebP for PNG; returns what pages should say now for each."""
    for path in images.glob("*.png"):
        slim = path.with_suffix(".webp")
        if not slim.exists():  # the name is a hash of the content
            slim.write_bytes(webp(path.read_bytes()))
        path.unlink()
    return {f"{path.stem}.png": path.name for path in images.glob("*.webp")}


def blocks(css):
    """(what stands before a block, the block's text) of each; no block where there is only `;`."""
    depth, head, body = 0, [], []
    for token in TOKEN.findall(css):
        if token == "}":
            depth -= 1
            if depth == 0:
                yield "".join(head).strip(), "".join(body)
                head, body = [], []
                continue
        if depth:
            body.append(token)
        elif token == ";":
            yield "".join(head).strip(), None
            head = []
        elif token != "{":
            head.append(token)
        depth += token == "{"


def may_match(selector, words):
    """Whether all classes that a selector needs are among the words."""
    plain = NESTED.sub("", selector)
    return all(name.replace("\\", "") in words for name in CLASS.findall(plain))


def selectors(head):
    """The selectors of a rule: parts between commas that stand in no parentheses."""
    hidden = NESTED.sub(lambda found: found[0].replace(",", "\0"), head)
    return [part.replace("\0", ",") for part in hidden.split(",")]


def purge(css, words):
    """The stylesheet without the rules that match nothing in pages of these words.

    A theme brings the whole of Bootstrap and the names of two thousand icons. A rule stays if every
    class of one of its selectors is a word somewhere in the pages or their scripts; what stands in
    parentheses, as in `:not(.x)`, decides nothing.
    """
    kept = []
    for head, body in blocks(COMMENT.sub("", css)):
        if body is None:
            kept.append(f"{head};")
        elif head.startswith(GROUPS):
            inner = purge(body, words)
            kept += [f"{head}{{{inner}}}"] if inner else []
        elif head.startswith("@"):
            kept.append(f"{head}{{{body}}}")
        elif used := [part for part in selectors(head) if may_match(part, words)]:
            kept.append(f"{','.join(used)}{{{body}}}")
    return "".join(kept)


def remove(static):
    """What a browser never asks for."""
    for pattern in UNUSED:
        for path in [p for found in static.glob(pattern) for p in (found, *found.rglob("*"))][::-1]:
            path.rmdir() if path.is_dir() else path.unlink()


def rewrite(path, change):
    """Write a text file anew if it changes."""
    old = path.read_text(encoding="utf-8")
    new = change(old)
    if new != old:
        path.write_text(new, encoding="utf-8")
    return new


def slim_styles(static, words):
    """Purge the theme's stylesheets; returns the signs of icons that are left in all."""

    def change(text):
        return FACE.sub(r'\1woff) format("woff")', purge(text, words))

    for path in (path for name in STYLES for path in static.glob(name)):
        rewrite(path, change)
    css = "".join(path.read_text(encoding="utf-8") for path in static.rglob("*.css"))
    return {int(sign, 16) for sign in SIGN.findall(css)} | {*map(ord, PRIVATE.findall(css))}


def slim_fonts(static, signs):
    """Fonts of icons with these signs, as WOFF: WOFF2 would need one package more."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    for path in static.glob(f"{FONTS}/*.ttf"):
        options = subset.Options(flavor="woff", notdef_outline=True)
        font = subset.load_font(str(path), options)
        chosen = subset.Subsetter(options)
        chosen.populate(unicodes=signs)
        chosen.subset(font)
        subset.save_font(font, str(path.with_suffix(".woff")), options)
        path.unlink()


def slim_formulas(static, words):
    """Fonts of formulas, but for alphabets that none of them asks for."""
    for family, commands in ALPHABETS.items():
        if not commands & words:
            for path in static.glob(f"katex/fonts/KaTeX_{family}-*"):
                path.unlink()


def without_outputs(text):
    """A notebook as it is in the repository."""
    notebook = nbformat.reads(text, nbformat.NO_CONVERT)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nbformat.writes(notebook, indent=0) + "\n"


def slim(app, exception):
    """All of it, once everything is written."""
    if exception is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    static = root / "_static"
    for path in root.glob("_sources/book/*/*.ipynb"):
        path.unlink()
    for path in root.glob("_sources/**/*.ipynb"):
        rewrite(path, without_outputs)
        path.with_suffix(".md").unlink(missing_ok=True)
    remove(static)
    images = root / "_images"
    images.mkdir(exist_ok=True)
    pictures = slim_pictures(images)

    def slimmed(path):
        def change(text):
            if text.startswith(SLIM):
                return text
            text = PLAIN.sub(r"\1", SCRIPT.sub("", text))
            text = PICTURE.sub(lambda found: pictures.get(found[0], found[0]), text)
            return minify_html.minify(INLINE.sub(slim_inline(path, images), text), **KEPT)

        return rewrite(path, change)

    pages = [slimmed(path) for path in root.rglob("*.html")]
    for path in images.glob("*.webp"):
        if not any(path.name in page for page in pages):
            path.unlink()  # of an earlier build
    scripts = [path.read_text(encoding="utf-8") for path in static.rglob("*.js")]
    words = set().union(*(WORD.findall(text) for text in pages))
    slim_formulas(static, words)
    words.update(*(WORD.findall(text) for text in scripts))
    slim_fonts(static, slim_styles(static, words))


def setup(app):
    """Run after all extensions that copy files."""
    app.connect("build-finished", slim, priority=900)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}

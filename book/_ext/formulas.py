"""Sphinx extension: mathematics without a network, drawn by KaTeX.

Sphinx writes formulas as for MathJax; the script that draws them is KaTeX, a third of the size. It
lies in `book/_static/katex` with its fonts, and is loaded by pages with formulas only.
"""

from sphinx.ext import mathjax

FILES = ("katex/katex.min.css", "katex/katex.min.js", "katex/draw.js")


def load(app, pagename, templatename, context, doctree):
    """Load KaTeX on pages with formulas."""
    if doctree is not None and app.env.get_domain("math").has_equations(pagename):
        app.add_css_file(FILES[0])
        for script in FILES[1:]:
            app.add_js_file(script, loading_method="defer")


def setup(app):
    """Take the place of Sphinx's own renderer, which goes by another name."""
    inline, display = mathjax.html_visit_math, mathjax.html_visit_displaymath
    app.add_html_math_renderer("katex", (inline, None), (display, None))
    app.connect("html-page-context", load)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

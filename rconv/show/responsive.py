"""Figures on a page: sharp on any screen, in the page's colours, in panels that a phone stacks.

``%load_ext rconv.show.responsive`` in a notebook shows each figure as panels, one per column of
pictures, per plot and per legend, each an SVG of its own: as many stand side by side as fit. Black
and white are those of the page, which may be dark; all other colours, and pictures, stay what they
are. Where a panel is too wide for a phone, the figure is drawn a second time, narrower.

A PNG comes with it, for programs that show no HTML. Where the environment says RCONV_FIGURES=html,
as for pages of the book, none does.
"""

import hashlib
import io
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from rconv.extras import extra
from rconv.show.figures import STYLE
from rconv.show.numbers import scientific

with extra():
    import matplotlib as mpl
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter
    from matplotlib.transforms import Bbox

LINE = 7.0
"""Inches, 672 CSS pixels: the text column on a desk. Figures of up to `MANY` are drawn to fit it;
wider ones have many panels, and several lines."""

MANY = 9.0

PHONE, LOW = 3.6, 2.5
"""Inches, 346 CSS pixels: the widest panel on a phone. Its text column may be 1/20 narrower. Plots
without pictures are this low there."""

TRIES, FITS = 3, 1.02
"""Layouts, at most, until pictures whose height was the limit are as narrow as that, and near
enough."""

SHRINK = 0.92
"""A panel may shrink to this before the next one moves below it. Text has 9 points, 12 CSS pixels,
or more, and stays above 11."""

MARGIN = 0.05
"""Inches around a panel."""

PARTS = re.compile(
    r'^  <g id="panel(\d+)">$.*?^  </g>\n|^ <defs>\n  <clipPath.*?^ </defs>\n', re.M | re.S
)
"""Axes and legends in matplotlib's SVG, and the rectangles that bound lines, at its end."""

CLEANED = (
    (r'<path d="[^"]*" style="fill: none"/>', ""),  # neither filled nor drawn
    (r'font-family: [^;"]*;? ?|<!--.*?-->| transform="rotate\(-0 [^"]*"|xlink:', ""),
    (r'<g id="[^"]*"', "<g"),
    (r"\s*\n\s*", "\n"),
    ("#000000", "currentColor"),
    ("#ffffff", "var(--pst-color-background, #fff)"),
)
"""What a page does not need or has better: names, fonts, white space; its own black and white."""

TAG, LONG = r"<[^>]*>", r"(?<![\w.])(\d\d+\.\d|\d\.\d{2})\d+"
"""Coordinates stand in tags, and need a tenth of a point. What is between tags is read."""

MARKS = r'<g( clip-path="[^"]*")?>\n((?:<use [^>]*/>\n){2,})</g>'
MARK = r'<use href="#(\S+)" x="(\S+)" y="(\S+)"( style="[^"]*")?/>'


def load_ipython_extension(shell: Any) -> None:
    """Show figures this way in a notebook; IPython calls it."""
    shell.run_line_magic("matplotlib", "inline")
    formatters = shell.display_formatter.formatters
    formatters["text/html"].for_type(Figure, page)
    if os.environ.get("RCONV_FIGURES") == "html":
        formatters["image/png"].pop(Figure, None)
    mpl.rcParams.update(STYLE)


def page(figure: Figure) -> str:
    """Draw a figure as HTML for a page.

    Returns one element, to which the book's extension `prose` adds the alternative text. The
    figure, best with the layout "constrained", is left as it was.
    """
    width, height = figure.get_size_inches()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            axis.set_major_formatter(lambda number, _: scientific(f"{number:.0e}"))
    line = LINE if LINE < width <= MANY else width
    panels, widest = _laid_out(figure, line)
    kinds, limit = [("", _drawn(figure, panels))], _even(panels)
    if widest > PHONE:
        kinds = [(" rconv-wide", kinds[0][1])]
        if not any(ax.images for ax in figure.axes):
            rows = max(max(_rows(ax)) for ax in figure.axes) + 1
            figure.set_figheight(min(height, rows * max(LOW, _crowded(figure))))
        for _ in range(TRIES):  # pictures become narrower only where their height is no limit
            if widest > FITS * PHONE:
                line *= PHONE / widest
                panels, widest = _laid_out(figure, line)
        kinds.append((" rconv-narrow", _drawn(figure, panels)))
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    for legend in figure.legends:
        legend.set_in_layout(True)
    drawn = "".join(f'<div{limit} class="rconv-panels{kind}">{svgs}</div>' for kind, svgs in kinds)
    return f'<div class="rconv-figure" role="img">{drawn}</div>'


def _even(panels: Sequence[tuple[list[Artist], Bbox]]) -> str:
    """The style of panels that need several lines: as many in each, eight as four and four."""
    widths = [box.width for _, box in panels]
    lines = math.ceil(SHRINK * sum(widths) / LINE)
    if lines < 2:
        return ""
    return f' style="max-width: {72 * max(widths) * math.ceil(len(widths) / lines):.0f}pt"'


def _laid_out(figure: Figure, width: float) -> tuple[list[tuple[list[Artist], Bbox]], float]:
    """The panels in reading order with their boxes, legends last, and the widest plot's inches."""
    panels: dict[Any, list[Artist]] = {}
    for ax in filter(Axes.get_visible, figure.axes):
        panels.setdefault(_place(ax), []).append(ax)
        if len(ax.get_shared_y_axes().get_siblings(ax)) > 1:
            ax.tick_params(labelleft=True)  # the axes that it shares may stand above it
    for legend in figure.legends:
        legend.set_in_layout(False)
    figure.set_size_inches(width, figure.get_figheight())
    figure.set_layout_engine("constrained")
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")  # no other place when it is drawn
    boxes = {place: _box(figure, panel) for place, panel in panels.items()}
    axes = [ax for panel in panels.values() for ax in panel]
    for place, box in boxes.items():  # panels of one row align
        row = _box(figure, [ax for ax in axes if _rows(ax) & _rows(*panels[place])])
        box.update_from_data_y([row.y0, row.y1])
    found = [(panels[place], box) for place, box in boxes.items()]
    found += [([legend], _box(figure, [legend])) for legend in figure.legends]
    return found, max(box.width for box in boxes.values())


def _crowded(figure: Figure) -> float:
    """Inches that the names on a vertical axis need, one below the other."""
    return max(0.5 + 0.19 * len(ax.get_yticks()) for ax in figure.axes)


def _drawn(figure: Figure, panels: Sequence[tuple[list[Artist], Bbox]]) -> str:
    """The panels as SVGs, cut from one drawing."""
    for number, (panel, _) in enumerate(panels):
        for artist in panel:
            artist.set_gid(f"panel{number}")
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, dpi=192)
    parts: dict[int, str] = {}
    for part in PARTS.finditer(file.getvalue()):  # the frames of lines go with the first panel
        number = int(part[1] or 0)
        parts[number] = parts.get(number, "") + cleaned(part[0])
    height = figure.get_figheight()
    boxes = {n: box for n, (_, box) in enumerate(panels) if n in parts}  # some draw nothing
    return _named("".join(_svg(box, height, parts[n]) for n, box in boxes.items()))


def _place(ax: Axes) -> Any:
    """What axes of one panel have in common: pictures their column, others nothing."""
    place = ax.get_subplotspec()
    return place.colspan.start if ax.images and place else id(ax)


def _rows(*axes: Axes) -> set[int]:
    """The rows of the grid in which axes stand."""
    places = [ax.get_subplotspec() for ax in axes]
    return {row for place in places for row in (place.rowspan if place else (0,))}


def _box(figure: Figure, group: Sequence[Artist]) -> Bbox:
    """What a group covers, with a margin, in inches."""
    pixels = Bbox.union([artist.get_tightbbox() for artist in group])
    return pixels.transformed(figure.dpi_scale_trans.inverted()).padded(MARGIN)


def _svg(box: Bbox, height: float, content: str) -> str:
    """A panel: what lies in a box, in inches, of a drawing so many inches high."""
    x, y, width, high = (72 * n for n in (box.x0, height - box.y1, box.width, box.height))
    style = f"flex: {width:.1f} 1 {SHRINK * width:.1f}pt; max-width: {width:.1f}pt"
    view = f"{x:.2f} {y:.2f} {width:.2f} {high:.2f}"
    return f'<svg style="{style}" viewBox="{view}" fill="currentColor">\n{content}</svg>'


def cleaned(svg: str) -> str:
    """Elements of matplotlib's SVG as a page needs them: the same picture, half as long."""
    for pattern, text in CLEANED:
        svg = re.sub(pattern, text, svg, flags=re.DOTALL)
    svg = re.sub(TAG, lambda tag: re.sub(LONG, r"\1", tag[0]), svg)
    return re.sub(MARKS, _marks, svg)


def _named(svg: str) -> str:
    """With short names, which differ between drawings and are the same whenever it is drawn."""
    prefix = "r" + hashlib.sha1(svg.encode()).hexdigest()[:6]
    names = dict.fromkeys(re.findall(r' id="([^"]+)"', svg))
    short = {name: f"{prefix}-{number}" for number, name in enumerate(names)}
    return re.sub(r'( id="|href="#|url\(#)([^")]+)', lambda found: found[1] + short[found[2]], svg)


def _marks(found: re.Match) -> str:
    """A line of marks, as one path: several at a tenth of a point are one."""
    uses = re.findall(MARK, found[2])
    kinds = {(name, style) for name, _, _, style in uses}
    if len(kinds) > 1 or len(uses) != found[2].count("<use"):
        return found[0]
    ((name, style),) = kinds
    mark = f"{name}{hashlib.sha1(style.encode()).hexdigest()[:4]}"
    places = dict.fromkeys(f"{float(x):.1f} {float(y):.1f}" for _, x, y, _ in uses)
    return (
        f'<g{found[1] or ""}>\n<marker id="{mark}" markerUnits="userSpaceOnUse" overflow="visible">'
        f'<use href="#{name}"{style}/></marker>\n'
        f'<path d="M{" ".join(places)}" style="fill: none; marker: url(#{mark})"/>\n</g>'
    )

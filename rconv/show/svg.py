"""Matplotlib's SVG without what a page needs not, or has better."""

import hashlib
import re

CLEANED = (
    (r'<path d="[^"]*" style="fill: none"/>', ""),  # neither filled nor drawn
    (r'font-family: [^;"]*;? ?|<!--.*?-->| transform="rotate\(-0 [^"]*"|xlink:', ""),
    (r'<g id="[^"]*"', "<g"),
    (r"\s*\n\s*", "\n"),
    ("#000000", "currentColor"),
    ("#ffffff", "var(--pst-color-background, #fff)"),
)
"""What a page needs not, or has better: names, fonts, digits, spaces; its own black and white."""

TAG, LONG = r"<[^>]*>", r"(?<![\w.])(\d\d+\.\d|\d\.\d{2})\d+"
"""Coordinates stand in tags, and need a tenth of a point. What is between tags is read."""

MARKS = r'<g( clip-path="[^"]*")?>\n((?:<use [^>]*/>\n){2,})</g>'
MARKED = (
    r'<path d="M([^"]*)"( clip-path="[^"]*") style="(fill: none[^"]*)"/>\n<g\2>\n'
    r'(<marker.*?</marker>)\n<path d="M([^"]*)" style="fill: none; marker: ([^"]*)"/>\n</g>\n'
)
MARK = r'<use href="#(\S+)" x="(\S+)" y="(\S+)"( style="[^"]*")?/>'


def cleaned(svg: str) -> str:
    """What matplotlib has drawn, as a page needs it.

    Parameters
    ----------
    svg : str
        Elements of its SVG.

    Returns
    -------
    str
        The same picture, a third as long.
    """
    for pattern, text in CLEANED:
        svg = re.sub(pattern, text, svg, flags=re.DOTALL)
    svg = re.sub(TAG, lambda tag: re.sub(LONG, r"\1", tag[0]), svg)
    svg = re.sub(r' d="M [^"A-Z]*(?:L [^"A-Z]*)+"', _straight, svg)
    return re.sub(MARKED, _marked, _ungrouped(re.sub(MARKS, _marks, svg)))


def _straight(path: re.Match) -> str:
    """A line, without a letter for each of its points."""
    return re.sub(r"\s*\n(?:L )?", " ", path[0]).replace("M ", "M").replace(' "', '"')


def _marked(found: re.Match) -> str:
    """A line and the marks at its points, as one path."""
    line, clip, style, marker, marks, place = found.groups()
    if line != marks:
        return found[0]
    return f'{marker}\n<path d="M{line}"{clip} style="{style}; marker: {place}"/>\n'


def _marks(found: re.Match) -> str:
    """A line of marks, as one path: several at a tenth of a point are one."""
    uses = re.findall(MARK, found[2])
    kinds = {(name, style) for name, _, _, style in uses}
    if len(kinds) > 1 or len(uses) != found[2].count("<use"):
        return found[0]
    ((name, style),) = kinds
    own = f"{name}{hashlib.sha1(style.encode()).hexdigest()[:4]}"
    places = dict.fromkeys(f"{float(x):.1f} {float(y):.1f}" for _, x, y, _ in uses)
    return (
        f'<g{found[1] or ""}>\n<marker id="{own}" markerUnits="userSpaceOnUse" overflow="visible">'
        f'<use href="#{name}"{style}/></marker>\n'
        f'<path d="M{" ".join(places)}" style="fill: none; marker: url(#{own})"/>\n</g>'
    )


def _ungrouped(svg: str) -> str:
    """Without groups that say nothing."""
    says: list[bool] = []

    def kept(tag: re.Match) -> str:
        if tag[0] == "</g>":
            return tag[0] if says.pop() else ""
        says.append(tag[0] != "<g>")
        return tag[0] if says[-1] else ""

    return re.sub(r"\s*\n\s*", "\n", re.sub(r"<g\b[^>]*>|</g>", kept, svg))

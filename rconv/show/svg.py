"""Matplotlib's SVG without what a page needs not, or has better."""

import hashlib
import html
import re
from collections import Counter

CLEANED = (
    (r'<path d="[^"]*" style="fill: none"/>', ""),  # neither filled nor drawn
    (r'font-family: [^;"]*;? ?|<!--.*?-->| transform="rotate\(-0 [^"]*"|xlink:', ""),
    (r'<g id="[^"]*"', "<g"),
    (r"\s*\n\s*", "\n"),
    ("#000000", "currentColor"),
    ("#ffffff", "var(--pst-color-background, #fff)"),
)
"""What a page needs not, or has better: names, fonts, digits, spaces; its own black and white."""

SEVERAL = 3
"""Elements of one style from which a rule is shorter."""

TAG, LONG = r"<[^>]*>", r"(?<![\w.])(\d\d+\.\d|\d\.\d{2})\d+"
"""Coordinates stand in tags, and need a tenth of a point. What is between tags is read."""

MARKS = r'<g( clip-path="[^"]*")?>\n((?:<use [^>]*/>\n){2,})</g>'
MARKED = (
    r'<path d="M([^"]*)"( clip-path="[^"]*") style="(fill: none[^"]*)"/>\n<g\2>\n'
    r'(<marker.*?</marker>)\n<path d="M([^"]*)" style="fill: none; marker: ([^"]*)"/>\n</g>\n'
)
NUMBER = r"-?[\d.]+"
LETTER = r'<tspan x="([^"]*)"[^>]*>([^<]*)</tspan>'
LETTERS = r'<tspan x="[^" ]*"([^>]*)>[^<]*</tspan>(?:\s*<tspan x="[^" ]*"\1>[^<]*</tspan>)+'

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
    svg = re.sub(r' d="(?:M [^"A-Z]*(?:L [^"A-Z]*)+)+"', _straight, svg)
    svg = re.sub(MARKED, _marked, _ungrouped(re.sub(MARKS, _marks, svg)))
    svg = re.sub(r' d="(M[\d.\s\-Mz]+)"', _steps, svg)
    return re.sub(LETTERS, _word, svg)


def joined(panels: str) -> str:
    """The panels of one drawing, what they share said once.

    Names inside a drawing are its own on the page, and the same whenever it is drawn. So are its
    classes, which are named after what they say.

    Parameters
    ----------
    panels : str
        Elements `svg`, cleaned.

    Returns
    -------
    str
        The same picture.
    """
    return _classed(_named(_unstyled(panels)))


def _unstyled(svg: str) -> str:
    """Without styles that a mark has from its definition."""
    styles = dict(re.findall(r'<path id="(\S+)" d="[^"]*" style="([^"]*)"/>', svg))

    def own(use: re.Match) -> str:
        return use[1] + "/>" if styles.get(use[2]) == use[3] else use[0]

    return re.sub(r'(<use href="#([^"]+)" x="[^"]*" y="[^"]*") style="([^"]*)"/>', own, svg)


def _word(letters: re.Match) -> str:
    """Letters of one height and style, as one word that places each."""
    tail = letters[1]
    each = re.findall(LETTER, letters[0])
    if any(len(html.unescape(text)) != 1 for _, text in each):
        return letters[0]
    places = " ".join(x for x, _ in each)
    return f'<tspan x="{places}"{tail}>{"".join(text for _, text in each)}</tspan>'


def _named(svg: str) -> str:
    """With short names, numbers after what the drawing is."""
    own = "r" + hashlib.sha1(svg.encode()).hexdigest()[:6]
    names = dict.fromkeys(re.findall(r' id="([^"]+)"', svg))
    short = {name: f"{own}-{number}" for number, name in enumerate(names)}
    return re.sub(r'( id="|href="#|url\(#)([^")]+)', lambda found: found[1] + short[found[2]], svg)


def _classed(svg: str) -> str:
    """With a class for each style that several elements have, its rule in the first panel."""
    styled = r'(<(?!svg)\w+[^>]*) style="([^"]*)"'
    styles = Counter(style for _, style in re.findall(styled, svg))
    names = {
        style: "s" + hashlib.sha1(style.encode()).hexdigest()[:6]
        for style, count in styles.items()
        if count >= SEVERAL
    }

    def named(tag: re.Match) -> str:
        return f'{tag[1]} class="{names[tag[2]]}"' if tag[2] in names else tag[0]

    rules = "".join(f".{name}{{{style.strip('; ')}}}" for style, name in names.items())
    svg = re.sub(styled, named, svg)
    return svg.replace(">", f"><style>{rules}</style>", 1) if rules else svg


def _straight(path: re.Match) -> str:
    """A line, without a letter for each of its points."""
    return re.sub(r"\s*\n(?:L )?", " ", path[0]).replace("M ", "M").replace(' "', '"')


def _steps(path: re.Match) -> str:
    """Lines by the steps from point to point.

    In tenths of a point, as LONG has it, or hundredths where all is small.
    """
    parts, place = [], (0, 0)
    unit = 100 if max(abs(float(n)) for n in re.findall(NUMBER, path[0])) < 10 else 10
    for line in path[1].split("M")[1:]:
        numbers = [round(unit * float(n)) for n in re.findall(NUMBER, line)]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        pairs = zip(points, [place, *points], strict=False)
        told = [f"{(x - u) / unit:g} {(y - v) / unit:g}" for (x, y), (u, v) in pairs]
        place = points[0] if "z" in line else points[-1]
        parts.append("m" + " ".join(told) + "z" * ("z" in line))
    return f' d="{"".join(parts)}"'


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

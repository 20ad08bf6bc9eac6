"""What an audit found, in words, as rows, and as one page of HTML that needs nothing else.

The page's markup and style are in `audit.html` beside this file; it runs no script and loads
nothing.
"""

from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Any

from rconv.audit import HYBRID, NOT_UNIQUE, TOO_LARGE, Findings, weakest
from rconv.lab.trial import Trial

HEADER = (
    "layer",
    "unknowns",
    "counted",
    "gradient rank",
    "weight rows",
    "rank",
    "open",
    "filters (needed)",
    "verdict",
)

MEANS = (
    "One client takes one step on one image and sends exact gradients. A layer leaks if its "
    "equations have full rank, so that one input alone solves them; what is below it is then "
    "attacked in turn, down to the pixels.",
    "The rank is that of random data: {active:.0%} of the outputs of each ReLU are taken to be "
    "active. BatchNorm counts in evaluation mode.",
)
"""What the verdict by rank says."""

MEANS_NOT = (
    "Open directions are not privacy. The range of the pixels and zeros behind a ReLU close many "
    "of them, and a prior of what images look like fills others: a picture can be plain to see of "
    "which the equations tell half.",
    "Full rank is no promise that every image comes back. Filters that are dead, rounding and "
    "noise take away from it.",
    "This is one attack. Others, several steps and what a server adds up from many clients are not "
    "judged here.",
)
"""What it does not say."""


def layer_rows(found: Findings) -> list[tuple]:
    """One row per layer, head first; see `HEADER`.

    The filters are those that each convolution has, and in brackets the fewest with which the
    layer's rank is full.
    """
    rows = []
    for own in found.layers:
        widths = [w for w in found.widths if w.layer == own.name]
        filters = ", ".join(f"{w.filters} ({_known(w.needed)})" for w in widths)
        counts = own.unknowns, own.counted, own.gradient_rank, own.weight_rows
        ranks = _known(own.hybrid_rank), _known(own.open)
        rows.append((own.name, *counts, *ranks, filters or "–", own.verdict))
    return rows


def sentence(found: Findings) -> str:
    """The verdict in one sentence."""
    if found.verdict == TOO_LARGE:
        name = next(own.name for own in found.layers if own.verdict == TOO_LARGE)
        return f"Not decided: the rank of {name} is too large to compute."
    if found.verdict == NOT_UNIQUE:
        short = [own for own in found.layers if own.verdict == NOT_UNIQUE]
        worst = max(short, key=lambda own: own.open or 0)
        count = worst.open or "some"
        return (
            f"Not by equations alone: {worst.name} leaves {count} of {worst.unknowns} directions "
            "of its input open, which is not yet privacy."
        )
    kinds = " of both kinds together" if found.verdict == HYBRID else ""
    return f"It leaks: equations{kinds} determine the image that a gradient was computed from."


def cheapest(found: Findings) -> str:
    """The change that makes a layer short most cheaply, and what it does not promise."""
    change = found.change
    if not found.widths:
        return "No change of filters was looked for: the network is entered below its first Linear."
    if found.verdict == NOT_UNIQUE:
        return "The rank is short already: no change of filters was looked for."
    if change is None:
        return (
            "Fewer filters in one convolution make no layer short, as far as ranks can be "
            "computed: this leak is not closed by a change of width."
        )
    width, short = change.width, change.layer
    others = f", and with it {', '.join(width.tied)}" if width.tied else ""
    return (
        f"Cheapest change: {width.convolution} with {change.filters} instead of {width.filters} "
        f"filters{others} ({change.parameters:,} parameters less). {short.name} then leaves "
        f"{short.open} of {short.unknowns} directions open. This closes the equations, not the "
        "leak: signs and a prior may still show the image."
    )


def batches(found: Findings) -> str:
    """How many images one averaged gradient may be of, and what ends it."""
    if not found.batches:
        return "The averaged gradient of several images is not taken apart at this head."
    least = weakest(found.batches)
    if not least.largest:
        return f"No batch is told: {least.name} does not tell one image."
    own = f"The averaged gradient of {least.largest} images tells all of them"
    if least.largest == 1:
        own = "The gradient of one image tells it, that of more does not"
    return f"{own}; {least.name} sets the limit (counted, for random data)."


def page(
    found: Findings,
    title: str,
    active: float,
    tried: Trial | None,
    command: str,
) -> str:
    """Write the audit as one page of HTML.

    Parameters
    ----------
    found : Findings
        The verdict by rank.
    title : str
        What the model is called.
    active : float
        Share of ReLU outputs that were taken to be active.
    tried : Trial or None
        What came of attacking images.
    command : str
        The command line that asked for it.

    Returns
    -------
    str
        A whole document, which loads nothing. What others have named is escaped.
    """
    facts = {
        "Model": title,
        "Convolutions": len(found.widths),
        "Verdict by rank": found.verdict,
        "rconv": version("rconv"),
        "Date": date.today().isoformat(),
        "Command": command,
    }
    body = "".join(_row(row) for row in layer_rows(found))
    return Template(files(__package__).joinpath("audit.html").read_text("utf-8")).substitute(
        title=_text(title),
        state="open" if found.verdict == NOT_UNIQUE else "leaks",
        sentence=_text(sentence(found)),
        facts="".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>\n" for k, v in facts.items()),
        header="".join(f'<th scope="col">{_text(name)}</th>' for name in HEADER),
        rows=body,
        cheapest=_text(cheapest(found)),
        batches=_text(batches(found)),
        tried=_trial(tried, found),
        means=_items(text.format(active=active) for text in MEANS),
        means_not=_items(MEANS_NOT),
    )


def _trial(tried: Trial | None, found: Findings) -> str:
    """What a trial says, or that there was none."""
    if tried is None:
        return "<p>No image was tried.</p>"
    said = (f"{len(tried.psnr)} {tried.source}, gradients in {tried.dtype}.", tried.verdict)
    return "".join(f"<p>{_text(t)}</p>" for t in (*said, tried.beside(found.verdict)) if t)


def _row(cells: Sequence[Any]) -> str:
    name, *rest = map(_text, cells)
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{c}</td>" for c in rest)}</tr>\n'


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{_text(text)}</li>\n" for text in texts)


def _known(number: int | None) -> int | str:
    return "–" if number is None else number


def _text(value: Any) -> str:
    """Text as HTML; what is not to be seen but steers a page, as its escape."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)))

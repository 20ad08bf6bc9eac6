"""The attack as a picture: a network from the loss down to the image, and what each step finds."""

from dataclasses import dataclass
from html import escape

from rconv.model.geometry import Stage
from rconv.model.nodes import Network

WIDTH = 340
"""Units across: on a phone about as many pixels, so that text of 12.5 stays above 11."""

ROW, HEIGHT, MIDDLE = 46, 30, 176
"""From row to row, height of a box, and where the boxes end and the attack's steps begin."""

STYLE = """
.rconv-diagram { width: 100%; max-width: 30rem; height: auto; font: 12.5px sans-serif; }
.rconv-diagram text { fill: var(--pst-color-text-base, #222); dominant-baseline: central; }
.rconv-diagram .muted { fill: var(--pst-color-text-muted, #555); }
.rconv-diagram rect { fill: var(--pst-color-surface, #f3f4f5); stroke-width: 1.5; }
.rconv-diagram .sent { stroke: #2f81c7; }
.rconv-diagram .found { stroke: #d9822b; stroke-dasharray: 5 3; }
.rconv-diagram path { fill: none; stroke: var(--pst-color-text-muted, #777); stroke-width: 1.5; }
.rconv-diagram .back { stroke: #d9822b; }
.rconv-diagram .tip { fill: #d9822b; stroke: none; }
"""
"""Colours of text and paper are the theme's, light or dark."""


@dataclass(frozen=True)
class Row:
    """One line of the picture.

    Parameters
    ----------
    name, detail : str
        In the box, and beside the name.
    kind : str
        "sent": weights that the attacker knows and gradients that it sees; "found": a map that
        only the client has, until it is found; "" for neither.
    step : str
        What the attack does there; "" for nothing.
    """

    name: str
    detail: str
    kind: str
    step: str


def attack_diagram(network: Network) -> str:
    """Draw a chain from the loss down to the image, beside it the attack's steps in their order.

    Parameters
    ----------
    network : Network
        A model as it was read, without branches.

    Returns
    -------
    str
        SVG for a notebook's ``HTML(…)``; legible at 360 pixels, in light and in dark mode.

    Raises
    ------
    UnsupportedModelError
        If the network is no chain.
    """
    rows = _rows(network.required_chain("the diagram"))
    height = ROW * len(rows) + 34
    words = "; ".join(f"{row.name}: {row.step}" for row in rows if row.step)
    drawn = "".join(_drawn(row, ROW * i + 4) for i, row in enumerate(rows))
    last = ROW * (len(rows) - 1)
    ways = "".join(
        f'<path d="M {MIDDLE / 2} {y + ROW + 4} V {y + HEIGHT + 8}"/>' for y in range(0, last, ROW)
    )
    right = MIDDLE + 12
    return (
        f'<svg class="rconv-diagram" role="img" viewBox="0 0 {WIDTH} {height}" '
        f'xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>'
        f"<title>The network and the attack's way back</title><desc>{escape(words)}</desc>"
        f'{ways}<path class="back" d="M {right} 12 V {last + 14}"/>'
        f'<path class="tip" d="M {right - 5} {last + 12} h 10 l -5 10 z"/>'
        f"{drawn}{_legend(height - 20)}</svg>"
    )


def _rows(network: Network) -> list[Row]:
    """From the loss down to the image; a step is spelled out where it comes first."""
    head = network.head
    found = Row("map", _size(network.nodes[-1].shape), "found", "")
    rows = [
        Row("loss", "", "", ""),
        Row(
            head.name, f"{head.weight.shape[1]} to {len(head.weight)}", "sent", "1  head: its input"
        ),
        found,
    ]
    for i, stage in enumerate(reversed(network.stages)):
        activation, equations = ("2  activation: Ō", "3  equations: X") if i == 0 else ("2", "3")
        image = i == len(network.stages) - 1
        equations += "  the image" if image and i > 0 else ""
        rows += [
            Row(stage.name, _kernel(stage), "sent", activation),
            Row("image" if image else "map", _size(stage.geometry.input), "found", equations),
        ]
    return rows


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _kernel(stage: Stage) -> str:
    """Filters, kernel and stride of a convolution."""
    kernel, stride = stage.geometry.kernel[0], stage.geometry.stride[0]
    step = f", stride {stride}" if stride > 1 else ""
    return f"{len(stage.weight)} of {kernel}×{kernel}{step}"


def _drawn(row: Row, y: int) -> str:
    middle = y + HEIGHT / 2
    box = f'<rect class="{row.kind}" x="2" y="{y}" width="{MIDDLE - 4}" height="{HEIGHT}" rx="5"/>'
    return (
        f'{box if row.kind else ""}<text x="12" y="{middle}">{escape(row.name)}</text>'
        f'<text class="muted" x="{MIDDLE - 10}" y="{middle}" text-anchor="end">{escape(row.detail)}'
        f'</text><text x="{MIDDLE + 26}" y="{middle}">{escape(row.step)}</text>'
    )


def _legend(y: int) -> str:
    """What the two kinds of boxes are."""
    kinds = (("sent", 2, "known, gradient sent"), ("found", 178, "the client's, until found"))
    return "".join(
        f'<rect class="{kind}" x="{x}" y="{y - 7}" width="18" height="14" rx="3"/>'
        f'<text class="muted" x="{x + 24}" y="{y}">{text}</text>'
        for kind, x, text in kinds
    )

"""What figures that one plays with have in common: controls, colours, keys and one HTML element.

A figure is written whole: Python draws its first state, which is what a reader without scripts
sees, and computes every number and sentence of all others. The script beside it (`web/*.js`, the
figure's own behind `play.js`) only chooses among them. Nothing is loaded and nothing is computed
in the browser, so that a figure works from a file, in Jupyter, and without a network.
"""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import torch
from PIL import Image

BLUE, ORANGE = "#2f81c7", "#d9822b"
"""The two colours of the drawing of the attack (`rconv.show.diagram`)."""


def figure(name: str, label: str, body: str, said: str, data: dict[str, Any]) -> str:
    """One figure as HTML, for a notebook's ``HTML(…)``.

    Parameters
    ----------
    name : str
        Of its style and script in `web`.
    label : str
        What the figure is, for those who do not see it.
    body : str
        HTML of the controls and of the first state.
    said : str
        One sentence on the first state; the script keeps it true.
    data : dict
        What the script chooses from, as JSON.

    Returns
    -------
    str
        One ``<figure>`` with its style, data and script.
    """
    styles, scripts = (
        "".join(
            files(__package__).joinpath("web", f"{part}.{kind}").read_text("utf-8")
            for part in ("play", name)
        )
        for kind in ("css", "js")
    )
    numbers = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure class="rconv-play {name}" aria-label="{escape(label)}">\n<style>\n{styles}'
        f'</style>\n<form onsubmit="return false">\n{body}\n</form>\n'
        f'<p class="said" aria-live="polite">{escape(said)}</p>\n'
        f'<script type="application/json">{numbers}</script>\n'
        f"<script>\n(() => {{\n{scripts}}})();\n</script>\n</figure>"
    )


def controls(*parts: str) -> str:
    """Controls in one block, which the script shows: without it they would do nothing."""
    return f'<div class="controls" hidden>{"".join(parts)}</div>'


def slider(name: str, label: str, texts: Sequence[str], start: int, steps: bool = False) -> str:
    """A slider with a text for each of its positions.

    Parameters
    ----------
    name : str
        Under which the script finds its position, an int from 0.
    label : str
        What it sets.
    texts : sequence of str
        One for each position, at least two.
    start : int
        Position at first.
    steps : bool
        Whether buttons beside it go back, forth, and through all positions by themselves.
    """
    texts_json = escape(json.dumps(list(texts), ensure_ascii=False))
    before = '<button type="button" data-by="-1" aria-label="back">‹</button>'
    behind = (
        '<button type="button" data-by="1" aria-label="forth">›</button>'
        '<button type="button" data-run>play</button>'
    )
    return (
        f'<div class="control"><label><span>{escape(label)}: '
        f"<output>{escape(texts[start])}</output></span>"
        f'<input type="range" name="{name}" min="0" max="{len(texts) - 1}" value="{start}" '
        f'data-texts="{texts_json}"></label>'
        + (f'<div class="steps" data-of="{name}">{before}{behind}</div>' if steps else "")
        + "</div>"
    )


def choice(name: str, label: str, texts: Sequence[str], start: int) -> str:
    """Radio buttons, of which the script finds the chosen one's number under `name`."""
    options = "".join(
        f'<label><input type="radio" name="{name}" value="{i}"{" checked" if i == start else ""}>'
        f"<span>{escape(text)}</span></label>"
        for i, text in enumerate(texts)
    )
    return (
        f'<fieldset class="control"><legend>{escape(label)}</legend>'
        f'<div class="options">{options}</div></fieldset>'
    )


def png(pixels: torch.Tensor) -> str:
    """Pixels (row, column, channel) in [0, 1] as the data URI of a PNG."""
    values = (255 * pixels).round().to(torch.uint8).squeeze(-1).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

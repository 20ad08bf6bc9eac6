"""Interactive figures: what they share, and how their templates become HTML.

A figure is written whole: Python computes every number and sentence of all its states, and the
template draws the first one, which is what a reader without scripts sees. The script beside it only
chooses among the states. A figure has a template, a style and a script of its own in `web`, and
shares those named `interactive`. Nothing is loaded or computed in the browser, so that a figure
works from a file, in Jupyter, and without a network.
"""

import base64
import io
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rconv.extras import extra

with extra():
    from PIL import Image

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["g"] = "{:g}".format
TEMPLATES.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}


def figure(name: str, label: str, said: str, data: dict[str, Any], **state: Any) -> str:
    """One figure as HTML, for a notebook's ``HTML(…)``.

    Returns a ``<figure>`` with the template, style and script of this name in `web`. `label` is its
    alternative text and `said` a sentence on the first state, which the script keeps up to date.
    The script chooses from `data`; the template draws `state`.
    """
    template = TEMPLATES.get_template(f"{name}.html")
    return template.render(name=name, label=label, said=said, data=data, **state)


def png(pixels: torch.Tensor) -> str:
    """Pixels (row, column, channel) in [0, 1] as the data URI of a PNG."""
    values = (255 * pixels).round().to(torch.uint8).squeeze(-1).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

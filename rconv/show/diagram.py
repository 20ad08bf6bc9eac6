"""The attack as a picture: a network from the loss down to the image, and what each step finds."""

from dataclasses import dataclass, replace

from rconv.model.geometry import Stage
from rconv.model.nodes import Network
from rconv.show.interactive import TEMPLATES

WIDTH = 340
"""Units across: on a phone about as many pixels, so that text of 12.5 stays above 11."""

ROW, HEIGHT, MIDDLE = 46, 30, 176
"""From row to row, height of a box, and where the boxes end and the attack's steps begin."""


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
    lit : bool
        Whether this is the step that a page explains.
    """

    name: str
    detail: str
    kind: str
    step: str
    lit: bool = False


STEPS = {"head": slice(1, 3), "activation": slice(3, 4), "constraints": slice(4, 5),
         "propagation": slice(3, 5), "image": slice(-2, None)}  # fmt: skip
"""The rows of a step in the short picture."""


def attack_diagram(network: Network, step: str | None = None) -> str:
    """Draw a chain from the loss down to the image, next to it the steps of the attack.

    `step`, one of `STEPS`, is highlighted, and the middle layers are left out. Returns SVG for a
    notebook's ``HTML(…)``, legible at 360 pixels, in light and in dark mode. Raises
    UnsupportedModelError for a network with branches.
    """
    rows = _rows(network.required_chain("the diagram"))
    if step is not None:
        rows = [*rows[:5], Row("⋮", "", "", ""), *rows[-2:]] if len(rows) > 7 else rows
        rows[STEPS[step]] = [replace(row, lit=True) for row in rows[STEPS[step]]]
    return TEMPLATES.get_template("diagram.html").render(
        {"rows": rows, "width": WIDTH, "height": ROW * len(rows) + 34},
        **{"pitch": ROW, "box": HEIGHT, "middle": MIDDLE},
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

"""An interactive figure: the recursion undoes a network layer by layer, down to the image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rconv.attack.report import LayerReport
from rconv.extras import extra
from rconv.linalg.solution import relative
from rconv.show import interactive
from rconv.show.figures import MAP_COLOURS, SIGNED_MAP_COLOURS
from rconv.show.numbers import scientific

with extra():
    import matplotlib as mpl

BEST = 1e-16
"""Relative error at which an error's bar is empty, that of rounding; it is full at 1."""

EQUATIONS = {"head": "the gradients", "gradient": "gradient constraints",
        "weight": "weight constraints", "hybrid": "hybrid constraints"}  # fmt: skip
"""Which equations determine a layer's input, by the name in its report."""


def peeling(layers: Sequence[LayerReport], truth: Sequence[Tensor]) -> str:
    """Draw what is known of a network's maps after each step of the attack.

    The layers are those of one image, from the head down to the first convolution. The true input
    of each, with axes (1, channel, row, column), is used for the errors alone. Returns HTML, in
    which every step is done; the script begins where nothing is known. Raises ValueError for
    several images, or a layer of short rank.
    """
    if any(len(layer.open) != 1 or int(layer.open) for layer in layers):
        raise ValueError("the figure peels one image whose layers all have full rank")
    found = [own.low.reshape(t.shape) for own, t in zip(layers, truth, strict=True)]
    errors = [float(relative(x - t, t)) for x, t in zip(found, truth, strict=True)]
    last = len(layers)
    said = [
        "Try it: press play. The attacker has the weights and the gradients of every layer, and "
        "none of the maps between them.",
        *(
            _said(n, layer, error, n == last)
            for n, (layer, error) in enumerate(zip(layers, errors, strict=True), 1)
        ),
    ]
    return interactive.figure(
        "peeling",
        "The attack undoes one layer after the other, down to the image",
        said[-1],
        {"said": said},
        names=["nothing yet", *(f"{n} of {last}, {own.name}" for n, own in enumerate(layers, 1))],
        panels=[
            _panel(layer.name, maps[0], error, n == last)
            for n, (layer, maps, error) in enumerate(zip(layers, found, errors, strict=True), 1)
        ],
    )


def _said(step: int, layer: LayerReport, error: float, image: bool) -> str:
    equations = EQUATIONS.get(layer.constraints[0], layer.constraints[0])
    return (
        f"Step {step}: {equations} of {layer.name} give {'the image' if image else 'its input'}. "
        f"Rank {int(layer.rank)} of {layer.unknowns} unknowns, "
        f"relative error {scientific(f'{error:.0e}')}."
    )


def _panel(layer: str, found: Tensor, error: float, image: bool) -> dict:
    """What the template draws of a layer and its input."""
    return {
        "layer": layer,
        "picture": _picture(found, image),
        "size": " × ".join(map(str, found.shape)),
        "share": 1 - math.log(max(min(error, 1.0), BEST)) / math.log(BEST),
        "error": scientific(f"{error:.0e}"),
    }


def _picture(maps: Tensor, image: bool) -> str:
    """The image; or channels in a square as nearly as may be, in the colours of feature maps."""
    if image:
        return interactive.png(maps.clamp(0, 1).permute(1, 2, 0))
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    _, height, width = maps.shape
    tiles = torch.full((rows * columns, height + 1, width + 1), torch.nan, dtype=torch.float64)
    tiles[: len(maps), :-1, :-1] = maps.round(decimals=9)  # a zero is drawn as a zero
    whole = tiles.reshape(rows, columns, height + 1, width + 1).permute(0, 2, 1, 3)
    whole = whole.reshape(rows * (height + 1), -1)[:-1, :-1]
    limit, signed = float(maps.abs().max()) or 1.0, bool((whole < 0).any())
    colours = mpl.colormaps[SIGNED_MAP_COLOURS if signed else MAP_COLOURS]
    scaled = (whole / limit + 1) / 2 if signed else whole / limit
    return interactive.png(torch.tensor(colours.with_extremes(bad=(0, 0, 0, 0))(scaled.numpy())))

"""An interactive figure: a window slides over the image, and the rows of A fill."""

import torch

from rconv.equations.windows import window_index
from rconv.model.geometry import Geometry
from rconv.show import interactive

BLUE, ORANGE = "#2f81c7", "#d9822b"
"""The two colours of the drawing of the attack (`rconv.show.diagram`)."""


def sliding(cotangent: torch.Tensor, geometry: Geometry) -> str:
    """Draw how the entries of Ō come into the matrix A of the gradient constraints.

    Returns HTML with the image, Ō and A; at first A is full and the last window is shown. The
    cotangent is Ō (row, column) of one filter, with small numbers; the geometry has one channel and
    one filter.
    """
    if tuple(cotangent.shape) != geometry.output[1:]:
        raise ValueError(f"Ō of {tuple(cotangent.shape)} is no output of {geometry.output}")
    index = window_index(geometry)
    values = cotangent.double()
    places = torch.where(index < geometry.positions, index, -1)
    flat = values.flatten().tolist()
    tints = [_tint(value, float(values.abs().max())) for value in flat]
    last, across = geometry.positions - 1, geometry.kernel[1]
    sentences = {"windows": _windows(values, places), "rows": _rows(values, geometry, places)}
    return interactive.figure(
        "sliding",
        "A window slides over an image while the matrix A fills",
        sentences["windows"][-1],
        {"places": places.tolist(), "tints": tints, **sentences},
        **{"last": last, "height": geometry.input[1], "width": geometry.input[2]},
        windows=[f"{p + 1} of {last + 1}" for p in range(last + 1)],
        pixels=(places == last).any(dim=0).tolist(),
        outputs=[_signed(value) for value in flat],
        columns=geometry.output[2],
        offsets=[f"{t // across}, {t % across}" for t in range(geometry.offsets)],
        entries=[(t, q, int(places[t, q])) for t, q in (places >= 0).nonzero().tolist()],
    )


def _tint(value: float, largest: float) -> str:
    """Orange for positive and blue for negative numbers, the stronger the larger."""
    colour = ORANGE if value > 0 else BLUE
    return f"{colour}{round(255 * (0.12 + 0.5 * abs(value) / largest)):02x}" if value else "#8883"


def _windows(values: torch.Tensor, places: torch.Tensor) -> list[str]:
    """A sentence on every position of the window."""
    columns = values.shape[1]
    return [
        f"The window at position ({p // columns}, {p % columns}): its entry of Ō, "
        f"{_signed(value)}, goes to {int((places == p).sum())} places of A, one in each row, in "
        "the columns of the tinted pixels."
        for p, value in enumerate(values.flatten().tolist())
    ]


def _rows(values: torch.Tensor, geometry: Geometry, places: torch.Tensor) -> list[str]:
    """A sentence on every row of A, with the beginning of its equation."""
    flat, across, texts = values.flatten().tolist(), geometry.kernel[1], []
    for t in range(geometry.offsets):
        met = [(flat[p], q) for q, p in enumerate(places[t].tolist()) if p >= 0 and flat[p]]
        terms = "".join(
            f" {'−' if v < 0 else '+'} {f'{abs(v):g}·' if abs(v) != 1 else ''}X[{q}]"
            for v, q in met[:3]
        )
        left = terms.removeprefix(" + ").strip() or "0"
        more = " + …" if len(met) > 3 else ""
        texts.append(
            f"Row ({t // across}, {t % across}): the weight at this offset meets the tinted "
            f"pixels, Ō laid over the image. Its equation is {left}{more} "
            f"= ∂ℓ/∂W[{t // across}, {t % across}]."
        )
    return texts


def _signed(value: float) -> str:
    return f"{value:g}".replace("-", "−")

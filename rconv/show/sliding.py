"""A figure that one plays with: a window slides over the image, and the rows of A fill."""

import torch

from rconv.equations.conv_gradient import gradient_matrix
from rconv.equations.windows import window_index
from rconv.model.geometry import Geometry
from rconv.show import play


def sliding(cotangent: torch.Tensor, geometry: Geometry) -> str:
    """Draw how the entries of Ō come into the matrix A of the gradient constraints.

    Parameters
    ----------
    cotangent : Tensor
        Axes (row, column): Ō of one filter, small numbers.
    geometry : Geometry
        Shapes of the convolution, of one channel and one filter.

    Returns
    -------
    str
        HTML of the figure: image, Ō and A. At first A is full and the last window is shown.

    Raises
    ------
    ValueError
        If the shape of Ō is not that of the output.
    """
    if tuple(cotangent.shape) != geometry.output[1:]:
        raise ValueError(f"Ō of {tuple(cotangent.shape)} is no output of {geometry.output}")
    index = window_index(geometry)
    values = cotangent.double()
    matrix = gradient_matrix(values[None, None], geometry)[0]
    last = geometry.positions - 1
    places = torch.where(index < geometry.positions, index, -1)
    tints = [_tint(value, float(values.abs().max())) for value in values.flatten().tolist()]
    windows, rows = _windows(values, geometry, places), _rows(values, geometry, places)
    steps = play.controls(
        play.slider(
            "window", "Window", [f"{p + 1} of {last + 1}" for p in range(last + 1)], last, True
        )
    )
    image = _image(places, geometry, tints, last)
    body = (
        f'{steps}<div class="pair"><div><b class="title">image X, pixel q</b>{image}</div>'
        f'<div><b class="title">Ō</b>{_output(values, tints, last)}</div></div>'
        f'<b class="title">A: rows are offsets (i, j), columns pixels q</b>'
        f"{_matrix(matrix, places, geometry, tints, last)}"
    )
    data = {"places": places.tolist(), "tints": tints, "windows": windows, "rows": rows}
    return play.figure(
        "sliding", "A window slides over an image while the matrix A fills", body, windows[-1], data
    )


def _tint(value: float, largest: float) -> str:
    """Orange for positive and blue for negative numbers, the stronger the larger."""
    colour = play.ORANGE if value > 0 else play.BLUE
    return f"{colour}{round(255 * (0.12 + 0.5 * abs(value) / largest)):02x}" if value else "#8883"


def _square(x: int, y: int, text: str, more: str = "") -> str:
    return (
        f'<rect x="{x + 0.03:g}" y="{y + 0.03:g}" width=".94" height=".94" {more}/>'
        f'<text x="{x + 0.5:g}" y="{y + 0.5:g}">{text}</text>'
    )


def _image(places: torch.Tensor, geometry: Geometry, tints: list[str], now: int) -> str:
    """The pixels with their numbers, tinted by the entry of Ō that the window carries."""
    height, width = geometry.input[1:]
    seen = (places == now).any(dim=0).tolist()
    squares = "".join(
        _square(
            q % width,
            q // width,
            str(q),
            f'class="now" style="fill: {tints[now]}"' if seen[q] else "",
        )
        for q in range(geometry.pixels)
    )
    return (
        f'<svg class="image" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="The image, its pixels numbered row by row">{squares}</svg>'
    )


def _output(values: torch.Tensor, tints: list[str], now: int) -> str:
    rows, columns = values.shape
    squares = "".join(
        _square(
            p % columns,
            p // columns,
            _signed(value),
            f'style="fill: {tints[p]}"' + (' class="now"' if p == now else ""),
        )
        for p, value in enumerate(values.flatten().tolist())
    )
    return (
        f'<svg class="output" viewBox="0 0 {columns} {rows}" role="img" '
        f'aria-label="The derivative of the output">{squares}</svg>'
    )


def _matrix(
    matrix: torch.Tensor, places: torch.Tensor, geometry: Geometry, tints: list[str], now: int
) -> str:
    """A with a label for each row that one can choose, and lines where the image's rows end."""
    offsets, pixels = matrix.shape
    entries = "".join(
        f'<rect data-t="{t}" data-p="{places[t, q]}" x="{q + 0.05:g}" y="{t + 0.08:g}" width=".9" '
        f'height=".84" style="fill: {tints[places[t, q]]}"'
        + (' class="now"/>' if places[t, q] == now else "/>")
        for t, q in (places >= 0).nonzero().tolist()
    )
    width, across = geometry.input[2], geometry.kernel[1]
    bands = "".join(
        f'<rect class="band" x="0" y="{t + 0.04:g}" width="{pixels}" height=".92" data-row="{t}"/>'
        for t in range(offsets)
    )
    ends = "".join(f'<path d="M {x} 0 V {offsets}"/>' for x in range(width, pixels, width))
    labels = "".join(
        f'<label><input type="radio" name="row" value="{t}" disabled '
        f'aria-label="row ({t // across}, {t % across})"><span>{t // across}, {t % across}</span>'
        "</label>"
        for t in range(offsets)
    )
    return (
        f'<div class="rows" style="--rows: {offsets}"><div role="radiogroup" '
        f'aria-label="Rows of A">{labels}</div><svg class="matrix" viewBox="0 0 {pixels} {offsets}"'
        f' preserveAspectRatio="none" role="img" aria-label="The matrix A">{bands}{ends}{entries}'
        "</svg></div>"
    )


def _windows(values: torch.Tensor, geometry: Geometry, places: torch.Tensor) -> list[str]:
    """A sentence on every position of the window."""
    columns = geometry.output[2]
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

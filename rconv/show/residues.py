"""A figure that one plays with: residue classes in colour, and the rank beside the count."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from rconv.audit.ranks import matrix_rank
from rconv.equations.conv_gradient import gradient_matrix
from rconv.model.geometry import Geometry
from rconv.show import play

COLOURS = (
    "#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#F0E442", "#8C6BB1",
    "#999999",
)  # fmt: skip
"""Of residue classes: those of Okabe and Ito, told apart by the colour-blind too, and two more."""

SCALE = 70
"""Percent of a bar that the unknowns take: more equations than these are seen to be more."""


def residues(
    sizes: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    filters: Sequence[int],
    start: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> str:
    """Draw the residue classes of a layer, and the generic rank of its gradient constraints.

    Parameters
    ----------
    sizes, kernels, strides, filters : sequence of int
        What one can choose: pixels a side, offsets a side (the padding keeps the size where the
        stride is 1, so they are odd), strides of at most 3, numbers of filters.
    start : tuple of int
        Which of each is chosen at first.

    Returns
    -------
    str
        HTML of the figure.
    """
    settings = {
        f"{i},{j},{k}": _setting(layer(size, kernel, stride), filters)
        for i, size in enumerate(sizes)
        for j, kernel in enumerate(kernels)
        for k, stride in enumerate(strides)
    }
    sides = [[str(n) for n in own] for own in (sizes, kernels, strides, filters)]
    chosen = play.controls(
        play.choice("size", "Image", [f"{n} × {n}" for n in sides[0]], start[0]),
        play.choice("kernel", "Kernel", [f"{n} × {n}" for n in sides[1]], start[1]),
        play.choice("stride", "Stride", sides[2], start[2]),
        play.slider("filters", "Filters", sides[3], start[3], steps=True),
    )
    data = {"settings": settings, "filters": list(filters), "classes": len(COLOURS), "scale": SCALE}
    own = settings[",".join(map(str, start[:3]))]
    body = (
        f'{chosen}<div class="grids">{_grid("pixels", own["size"], own)}'
        f"{_grid('offsets', own['kernel'], own)}{_shares(own, start[3], filters)}</div>"
        f"{_bars(own, start[3], filters)}"
    )
    return play.figure(
        "residues",
        "Residue classes of pixels and offsets, and the rank of the equations",
        body,
        own["said"][start[3]],
        data,
    )


def layer(size: int, kernel: int, stride: int) -> Geometry:
    """One channel of a square image, padded by half the kernel, and one filter."""
    padding = kernel // 2
    out = (size + 2 * padding - kernel) // stride + 1
    return Geometry(
        input=(1, size, size),
        output=(1, out, out),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(1, 1),
    )


def _setting(geometry: Geometry, filters: Sequence[int]) -> dict:
    """What the figure says of one image, kernel and stride, for every number of filters."""
    stride, padding = geometry.stride[0], geometry.padding[0]
    pixel = _numbers(geometry.input[1], padding, stride)
    offset = _numbers(geometry.kernel[0], 0, stride)
    members = [(offset == k, pixel == k) for k in range(stride**2)]
    ranks = [_ranks(geometry, d, members) for d in filters]
    return {
        "size": geometry.input[1],
        "kernel": geometry.kernel[0],
        "stride": stride,
        "padding": padding,
        "pixels": [int(q.sum()) for _, q in members],
        "offsets": [int(t.sum()) for t, _ in members],
        "ranks": ranks,
        "said": [
            _said(d * geometry.offsets, geometry.pixels, sum(own))
            for d, own in zip(filters, ranks, strict=True)
        ],
    }


def _numbers(size: int, shift: int, stride: int) -> torch.Tensor:
    """Residue class of each place of a square grid, row by row."""
    own = (torch.arange(size) + shift) % stride
    return (stride * own[:, None] + own).flatten()


def _ranks(geometry: Geometry, filters: int, members: list) -> list[int]:
    """Generic rank of each class's own equations."""
    wide = replace(geometry, output=(filters, *geometry.output[1:]))
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(1, *wide.output, generator=generator, dtype=torch.float64)
    matrix = gradient_matrix(cotangent, wide)[0].reshape(filters, wide.offsets, wide.pixels)
    return [matrix_rank(matrix[:, t][:, :, q].flatten(0, 1)) for t, q in members]


def _said(equations: int, unknowns: int, rank: int) -> str:
    """Whether the count suffices, and whether the rank does."""
    count = "enough by the count" if equations >= unknowns else "too few by the count"
    left = unknowns - rank
    told = (
        "the generic rank is full"
        if not left
        else f"{left} {'directions stay' if left > 1 else 'direction stays'} open"
    )
    return f"{equations} equations for {unknowns} unknowns: {count}. Rank {rank}: {told}."


def _grid(name: str, side: int, own: dict) -> str:
    """A square of places; its pattern is one period of the residue classes."""
    shift = -own["padding"] if name == "pixels" else 0
    tile = "".join(
        f'<rect data-class="{k}" x="{k % own["stride"] + 0.04}" y="{k // own["stride"] + 0.04}" '
        f'width=".92" height=".92" fill="{colour}"/>'
        for k, colour in enumerate(COLOURS)
    )
    size = f'width="{own["stride"]}" height="{own["stride"]}"'
    title = "Pixels" if name == "pixels" else "Offsets"
    return (
        f'<div class="{name}"><b class="title">{title}</b><svg viewBox="0 0 {side} {side}" '
        f'role="img" aria-label="{title}, coloured by residue class"><defs>'
        f'<pattern id="rconv-{name}" patternUnits="userSpaceOnUse" x="{shift}" y="{shift}" {size}>'
        f'{tile}</pattern></defs><rect class="area" width="{side}" height="{side}" '
        f'fill="url(#rconv-{name})"/></svg></div>'
    )


def _shares(own: dict, chosen: int, filters: Sequence[int]) -> str:
    """Each class counted for itself."""
    lines = []
    for k, colour in enumerate(COLOURS):
        known = k < own["stride"] ** 2
        texts = _line(own, k, chosen, filters) if known else [""] * 4
        cells = "".join(f"<span>{text}</span>" for text in texts)
        lines.append(
            f'<li{"" if known else " hidden"}><i style="background: {colour}"></i>{cells}</li>'
        )
    heads = ("offsets", "equations", "pixels", "rank")
    head = "".join(f"<span>{text}</span>" for text in heads)
    return f'<ol class="shares"><li class="muted"><i></i>{head}</li>{"".join(lines)}</ol>'


def _line(own: dict, k: int, chosen: int, filters: Sequence[int]) -> list[int]:
    """Offsets, equations, pixels and rank of one class."""
    offsets, pixels = own["offsets"][k], own["pixels"][k]
    return [offsets, offsets * filters[chosen], pixels, own["ranks"][chosen][k]]


def _bars(own: dict, chosen: int, filters: Sequence[int]) -> str:
    """Equations and rank against the unknowns, the rank in the colours of its classes."""
    unknowns, rank = own["size"] ** 2, sum(own["ranks"][chosen])
    equations = filters[chosen] * own["kernel"] ** 2
    parts = []
    for k, colour in enumerate(COLOURS):
        known = k < own["stride"] ** 2
        pixels, told = (own["pixels"][k], own["ranks"][chosen][k]) if known else (0, 0)
        parts.append(
            f'<div style="width: {100 * pixels / unknowns:g}%"><i style="background: {colour}; '
            f'width: {100 * told / max(pixels, 1):g}%"></i></div>'
        )
    return (
        '<div class="totals"><span>equations</span><div class="track"><i class="count" '
        f'style="width: {min(100, SCALE * equations / unknowns):g}%"></i></div>'
        f'<b class="counted">{equations}</b><span>unknowns</span><div class="track">'
        f'<i style="width: {SCALE}%"></i></div><b class="unknown">{unknowns}</b>'
        f'<span>rank</span><div class="track"><div class="told" style="width: {SCALE}%">'
        f'{"".join(parts)}</div></div><b class="ranked">{rank}</b></div>'
    )

"""An interactive figure: residue classes in colour, and the rank beside the count."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from rconv.audit.ranks import matrix_rank
from rconv.equations.conv_gradient import gradient_matrix
from rconv.model.geometry import Geometry
from rconv.show import interactive

COLOURS = (
    "#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#F0E442", "#8C6BB1",
    "#999999",
)  # fmt: skip
"""Of residue classes: Okabe and Ito's, which the colour-blind distinguish too, and two more."""

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

    Returns HTML in which a reader chooses the pixels and kernel offsets a side (odd, so that the
    padding keeps the size where the stride is 1), a stride of at most 3, and the number of filters.
    `start` says which of each is chosen at first.
    """
    settings = {
        f"{i},{j},{k}": _setting(layer(size, kernel, stride), filters)
        for i, size in enumerate(sizes)
        for j, kernel in enumerate(kernels)
        for k, stride in enumerate(strides)
    }
    chosen = settings[",".join(map(str, start[:3]))]
    return interactive.figure(
        "residues",
        "Residue classes of pixels and offsets, and the rank of the equations",
        chosen["said"][start[3]],
        {"settings": settings, "filters": filters, "classes": len(COLOURS), "scale": SCALE},
        **{"chosen": chosen, "start": start, "stride": chosen["stride"]},
        sizes=[f"{n} × {n}" for n in sizes],
        kernels=[f"{n} × {n}" for n in kernels],
        strides=list(map(str, strides)),
        filters=list(map(str, filters)),
        classes=_classes(chosen, start[3], filters[start[3]]),
        equations=filters[start[3]] * chosen["kernel"] ** 2,
        unknowns=chosen["size"] ** 2,
        rank=sum(chosen["ranks"][start[3]]),
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
            _said(d * geometry.offsets, geometry.pixels, sum(rank))
            for d, rank in zip(filters, ranks, strict=True)
        ],
    }


def _numbers(size: int, shift: int, stride: int) -> torch.Tensor:
    """Residue class of each place of a square grid, row by row."""
    residue = (torch.arange(size) + shift) % stride
    return (stride * residue[:, None] + residue).flatten()


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
    answer = (
        "the generic rank is full"
        if not left
        else f"{left} {'directions stay' if left > 1 else 'direction stays'} open"
    )
    return f"{equations} equations for {unknowns} unknowns: {count}. Rank {rank}: {answer}."


def _classes(chosen: dict, place: int, filters: int) -> list[dict]:
    """Colour of each class, and its offsets, equations, pixels and rank; none where it is empty."""
    known = zip(chosen["offsets"], chosen["pixels"], chosen["ranks"][place], strict=True)
    numbers = [(offsets, offsets * filters, pixels, rank) for offsets, pixels, rank in known]
    return [
        {"colour": colour, "numbers": numbers[k] if k < len(numbers) else None}
        for k, colour in enumerate(COLOURS)
    ]

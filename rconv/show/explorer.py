"""One interactive figure in plain HTML: two sliders, reconstructions, and what they are worth.

Every frame is computed beforehand. The figure needs no kernel, no network and no library: all
frames lie in one picture inside the HTML, and the sliders choose which part of it is shown. Its
markup, style and script are in `explorer.html` beside this file.
"""

import base64
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template

import torch
from PIL import Image

from rconv.lab import metrics

PSNR_SHOWN = 400.0
"""dB, in place of the infinite PSNR of equal images, which JSON cannot hold. An error of 1e-20
in every pixel would give as much: no image that a screen can tell from another comes near."""


def explorer(
    frames: torch.Tensor,
    original: torch.Tensor,
    ranks: torch.Tensor,
    sliders: dict[str, Sequence[str]],
    methods: Sequence[str],
    start: tuple[int, int] = (0, 0),
    doubts: Sequence[Sequence[Sequence[str]]] | None = None,
) -> str:
    """Write the figure as HTML, for a notebook's ``HTML(…)``.

    Parameters
    ----------
    frames
        Axes (first slider, second slider, method, channel, row, column), reconstructions. They
        are clipped to [0, 1] before they are shown and judged.
    original
        Axes (channel, row, column): the truth, shown beside them and used for their PSNR.
    ranks
        int64, axes (first slider, second slider, method): rank of the image's equations. The
        bar is full where it equals the number of the image's entries, which says that the
        equations have one solution, not that it is the image.
    sliders
        Name of each of the two sliders → a text for each of its positions.
    methods
        Name of each method.
    start
        Positions of the sliders at first.
    doubts
        Axes as `ranks`: the attacker's reason to doubt a reconstruction, "" where there is none
        (`Reconstruction.doubts`). Shown as a verdict below the bar; None leaves it out.

    Returns
    -------
    str
        One ``<figure>``; without scripts it shows all frames in one static picture.

    Raises
    ------
    ValueError
        If the shapes, sliders, methods and doubts do not fit together.
    """
    wanted = (*(len(texts) for texts in sliders.values()), len(methods))
    if len(sliders) != 2 or frames.shape != wanted + original.shape or ranks.shape != wanted:
        raise ValueError(
            f"{tuple(frames.shape)} frames, {tuple(ranks.shape)} ranks and an image of "
            f"{tuple(original.shape)} do not fit sliders and methods of {wanted}"
        )
    if doubts is not None and _lengths(doubts) != {wanted}:
        raise ValueError(f"doubts of {_lengths(doubts)} do not fit sliders and methods of {wanted}")
    seen = frames.detach().cpu().double().nan_to_num(0.5).clamp(0, 1)
    flat = seen.reshape(-1, *original.shape)
    psnr = metrics.psnr(flat, original.expand_as(flat).cpu(), data_range=1.0)
    sprite = _png(seen.permute(0, 4, 1, 2, 5, 3).flatten(2, 4).flatten(0, 1))
    data = {
        "sliders": list(sliders),
        "texts": list(sliders.values()),
        "start": start,
        "methods": list(methods),
        "ranks": ranks.tolist(),
        "unknowns": original.numel(),
        "psnr": psnr.clamp(max=PSNR_SHOWN).round(decimals=1).reshape(wanted).tolist(),
        "doubts": doubts,
        "sprite": sprite,
    }
    return _Page(files(__package__).joinpath("explorer.html").read_text("utf-8")).substitute(
        original=_png(original.detach().cpu().double().clamp(0, 1).permute(1, 2, 0)),
        sprite=sprite,
        data=json.dumps(data).replace("<", "\\u003c"),
    )


class _Page(Template):
    """A template whose script keeps its dollars: its places are written %%name."""

    delimiter = "%%"


def _lengths(nested: Sequence[Sequence[Sequence[str]]]) -> set[tuple[int, int, int]]:
    """The shape of nested sequences; more than one where they are ragged."""
    return {(len(nested), len(rows), len(texts)) for rows in nested for texts in rows}


def _png(pixels: torch.Tensor) -> str:
    """Pixels (row, column, channel) in [0, 1] as the data URI of a PNG."""
    values = (255 * pixels).round().to(torch.uint8).squeeze(-1).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

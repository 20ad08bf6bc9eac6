"""An interactive figure: two settings as a map to click, and what each cell's image is.

Every frame is computed beforehand and lies in one picture inside the HTML. A cell's colour is the
PSNR of its reconstruction, which needs the truth; the two bars beside it are the attacker's.
"""

import math
from collections.abc import Sequence

import torch

from rconv.extras import extra
from rconv.lab import metrics
from rconv.show import interactive
from rconv.show.figures import MAP_COLOURS
from rconv.show.numbers import scientific

with extra():
    import matplotlib as mpl

DIGITS = 16
"""Decimal digits of double precision: a certificate of 10⁻¹⁶ fills its bar."""

BEST = 120.0
"""dB of the brightest colour: errors of a millionth, far below what a screen can show."""

TRUSTED = "the only image"
"""The verdict where nothing speaks against it."""


def explorer(
    frames: torch.Tensor,
    original: torch.Tensor,
    ranks: torch.Tensor,
    certificates: torch.Tensor,
    diagnostics: Sequence[Sequence[Sequence[str]]],
    sliders: dict[str, Sequence[str]],
    methods: Sequence[str],
    start: tuple[int, int] = (0, 0),
) -> str:
    """Write the figure as HTML, for a notebook's ``HTML(…)``.

    Parameters
    ----------
    frames : Tensor
        Axes (first slider, second slider, method, channel, row, column), reconstructions. They
        are clipped to [0, 1] before they are shown and judged.
    original : Tensor
        Axes (channel, row, column): the truth, shown beside them and used for their PSNR.
    ranks : Tensor, int64
        Axes (first slider, second slider, method): rank of the image's equations. The bar is full
        where it equals the number of the image's entries, which says that the equations have one
        solution, not that it is the image.
    certificates : Tensor
        Axes as `ranks`: relative residual of the recomputed gradients
        (`Reconstruction.gradient_residual`).
    diagnostics : nested sequences of str
        Axes as `ranks`: the attacker's reason against a reconstruction, "" where there is none
        (`Reconstruction.diagnostics`).
    sliders : dict
        Name of each of the two sliders → a text for each of its positions: the columns and the
        rows of the maps.
    methods : sequence of str
        Name of each method; each has a map of its own.
    start : tuple of int
        Positions of the sliders at first.
    """
    shape = (*(len(texts) for texts in sliders.values()), len(methods))
    ragged = {(len(diagnostics), len(line), len(cell)) for line in diagnostics for cell in line}
    given = {ranks.shape, certificates.shape} | ragged
    if len(sliders) != 2 or frames.shape != shape + original.shape or given != {shape}:
        raise ValueError(
            f"{tuple(frames.shape)} frames, an image of {tuple(original.shape)}, and ranks, "
            f"certificates and diagnostics of {given} do not fit sliders and methods of {shape}"
        )
    seen = frames.detach().cpu().double().nan_to_num(0.5).clamp(0, 1)
    truth = original.detach().cpu().double()
    psnr = metrics.psnr(seen.flatten(0, 2), truth.expand_as(seen).flatten(0, 2), data_range=1.0)
    reasons = [reason for column in diagnostics for cell in column for reason in cell]
    each = zip(psnr, ranks.flatten(), certificates.flatten(), reasons, strict=True)
    facts = [_fact(*map(float, numbers), truth.numel(), reason) for *numbers, reason in each]
    (across, columns), (down, rows) = sliders.items()
    return interactive.figure(
        "explorer",
        f"{across} and {down}: a map of what is reconstructed",
        "",
        {"facts": facts, "shape": shape, "methods": list(methods), "trusted": TRUSTED},
        **{"across": across, "columns": columns, "down": down, "rows": rows, "start": start},
        original=interactive.png(truth.clamp(0, 1).permute(1, 2, 0)),
        sprite=interactive.png(seen.permute(0, 4, 1, 2, 5, 3).flatten(2, 4).flatten(0, 1)),
        size=f"{100 * shape[1] * shape[2]}% {100 * shape[0]}%",
        cards=[_card(m, methods[m], psnr.reshape(shape), facts, start) for m in range(shape[2])],
        colours=[_colour(x / 8) for x in range(9)],
        best=f"{BEST:.0f}",
    )


def _fact(psnr: float, rank: float, certificate: float, unknowns: int, reason: str) -> tuple:
    """Texts and lengths of the bars of one reconstruction, and the verdict."""
    digits = -math.log10(max(certificate, 10.0**-DIGITS)) if math.isfinite(certificate) else 0.0
    return (
        "no error" if math.isinf(psnr) else f"{psnr:.0f} dB",
        f"rank {rank:.0f} of {unknowns}",
        round(rank / unknowns, 4),
        f"certificate {scientific(f'{certificate:.0e}')}",
        round(max(digits / DIGITS, 0.0), 4),
        f"in doubt: {scientific(reason)}" if reason else TRUSTED,
    )


def _card(
    method: int, name: str, psnr: torch.Tensor, facts: Sequence[tuple], start: tuple[int, int]
) -> dict:
    """One method's map by rows, and what its chosen cell holds."""
    columns, rows, methods = psnr.shape

    def fact(column: int, row: int) -> tuple:
        return facts[(column * rows + row) * methods + method]

    def cell(column: int, row: int) -> dict:
        colour = _colour(float(psnr[column, row, method]) / BEST)
        return {"colour": colour, "trusted": fact(column, row)[-1] == TRUSTED}

    at = (start[1] * methods + method, rows * methods), (start[0], columns)
    return {
        "method": name,
        "cells": [[cell(i, j) for i in range(columns)] for j in range(rows)],
        "chosen": fact(*start),
        "position": " ".join(f"{100 * place / max(count - 1, 1):g}%" for place, count in at),
    }


def _colour(share: float) -> str:
    return mpl.colors.to_hex(mpl.colormaps[MAP_COLOURS](share))

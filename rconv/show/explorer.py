"""A figure that one plays with: two settings as a map to click, and what each cell's image is.

Every frame is computed beforehand and lies in one picture inside the HTML. A cell's colour is what
its reconstruction is worth, which needs the truth; the two bars beside it are the attacker's.
"""

import math
from collections.abc import Sequence

import torch

from rconv.lab import metrics
from rconv.show import play
from rconv.show.explorer_parts import TRUSTED, Shown, card, head, scale
from rconv.show.numbers import scientific

DIGITS = 16
"""Decimal digits of double precision: a certificate of 10⁻¹⁶ fills its bar."""


def explorer(
    frames: torch.Tensor,
    original: torch.Tensor,
    ranks: torch.Tensor,
    certificates: torch.Tensor,
    doubts: Sequence[Sequence[Sequence[str]]],
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
    doubts : nested sequences of str
        Axes as `ranks`: the attacker's reason to doubt a reconstruction, "" where there is none
        (`Reconstruction.diagnostics`).
    sliders : dict
        Name of each of the two sliders → a text for each of its positions: the columns and the
        rows of the maps.
    methods : sequence of str
        Name of each method; each has a map of its own.
    start : tuple of int
        Positions of the sliders at first.

    Returns
    -------
    str
        HTML of the figure.

    Raises
    ------
    ValueError
        If the shapes, sliders, methods and doubts do not fit together.
    """
    wanted = (*(len(texts) for texts in sliders.values()), len(methods))
    ragged = {(len(doubts), len(column), len(cell)) for column in doubts for cell in column}
    given = {ranks.shape, certificates.shape} | ragged
    if len(sliders) != 2 or frames.shape != wanted + original.shape or given != {wanted}:
        raise ValueError(
            f"{tuple(frames.shape)} frames, an image of {tuple(original.shape)}, and ranks, "
            f"certificates and doubts of {given} do not fit sliders and methods of {wanted}"
        )
    seen = frames.detach().cpu().double().nan_to_num(0.5).clamp(0, 1)
    truth = original.detach().cpu().double()
    psnr = metrics.psnr(seen.flatten(0, 2), truth.expand_as(seen).flatten(0, 2), data_range=1.0)
    told = [doubt for column in doubts for cell in column for doubt in cell]
    each = zip(psnr, ranks.flatten(), certificates.flatten(), told, strict=True)
    facts = [_fact(*map(float, numbers), truth.numel(), doubt) for *numbers, doubt in each]
    shown = Shown(psnr.reshape(wanted), facts, wanted, start)
    sprite = play.png(seen.permute(0, 4, 1, 2, 5, 3).flatten(2, 4).flatten(0, 1))
    cards = "".join(card(shown, m, method, sliders) for m, method in enumerate(methods))
    cards = f'<div class="cards" style="--sprite: url({sprite})">{cards}</div>'
    data = {"facts": facts, "shape": wanted, "methods": list(methods), "trusted": TRUSTED}
    label = f"{' and '.join(sliders)}: a map of what is reconstructed"
    body = head(truth, sliders, start) + cards + scale()
    return play.figure("explorer", label, body, "", data)


def _fact(psnr: float, rank: float, certificate: float, unknowns: int, doubt: str) -> tuple:
    """Texts and lengths of the bars of one reconstruction, and the verdict."""
    digits = -math.log10(max(certificate, 10.0**-DIGITS)) if math.isfinite(certificate) else 0.0
    return (
        "no error" if math.isinf(psnr) else f"{psnr:.0f} dB",
        f"rank {rank:.0f} of {unknowns}",
        round(rank / unknowns, 4),
        f"certificate {scientific(f'{certificate:.0e}')}",
        round(max(digits / DIGITS, 0.0), 4),
        f"in doubt: {scientific(doubt)}" if doubt else TRUSTED,
    )

"""Markup of the explorer's parts: the truth with the sliders, a map and its cell, the colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
import torch

from rconv.show import play
from rconv.show.panels import MAP_COLOURS

BEST = 120.0
"""dB of the brightest colour: errors of a millionth, far below what a screen can show."""

TRUSTED = "the only image"
"""The verdict where the attacker has no doubt."""


@dataclass(frozen=True)
class Shown:
    """All cells of all maps, and which one is chosen at first."""

    psnr: torch.Tensor
    facts: list
    shape: tuple[int, int, int]
    start: tuple[int, int]

    def fact(self, column: int, row: int, method: int) -> tuple:
        """What is said of one reconstruction."""
        _, rows, methods = self.shape
        return self.facts[(column * rows + row) * methods + method]


def head(original: torch.Tensor, sliders: dict, start: tuple[int, int]) -> str:
    """The truth and the two sliders."""
    (across, columns), (down, rows) = sliders.items()
    moved = (
        play.slider("column", across, columns, start[0]),
        play.slider("row", down, rows, start[1]),
    )
    source = play.png(original.clamp(0, 1).permute(1, 2, 0))
    return (
        f'<div class="head"><div><img class="pixelated" alt="The original image" src="{source}">'
        f"<span>original</span></div>{play.controls(*moved)}</div>"
    )


def card(shown: Shown, number: int, method: str, sliders: dict) -> str:
    """One method: its map, and what the chosen cell holds."""
    return (
        f'<section class="trial"><b class="title">{escape(method)}</b>'
        f"{_map(shown, number, method, *sliders.values())}{_chosen(shown, number)}</section>"
    )


def _map(shown: Shown, method: int, name: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    """A cell for each setting, its colour the PSNR, with a dot where the attacker trusts it."""
    colours = mpl.colormaps[MAP_COLOURS]
    lines = []
    for j, row in enumerate(rows):
        cells = "".join(
            f'<i data-cell="{i},{j}" class="{"now" if (i, j) == shown.start else ""}'
            f'{" trusted" if shown.fact(i, j, method)[-1] == TRUSTED else ""}" style="background: '
            f'{mpl.colors.to_hex(colours(float(shown.psnr[i, j, method]) / BEST))}"></i>'
            for i in range(len(columns))
        )
        lines.append(f"<span>{escape(row)}</span>{cells}")
    names = "".join(f"<span>{escape(column)}</span>" for column in columns)
    return (
        f'<div class="map" style="--columns: {len(columns)}" tabindex="0" role="group" '
        f'aria-label="{escape(name)}: the arrow keys choose another cell">{"".join(lines)}'
        f"<span></span>{names}</div>"
    )


def _chosen(shown: Shown, method: int) -> str:
    """The reconstruction of the chosen cell, its bars and the verdict."""
    columns, rows, methods = shown.shape
    psnr, rank, told, certificate, digits, verdict = shown.fact(*shown.start, method)
    at = (
        _percent(shown.start[1] * methods + method, rows * methods),
        _percent(shown.start[0], columns),
    )
    return (
        f'<div class="chosen"><div class="frame pixelated" role="img" aria-label="Reconstruction" '
        f'style="background-position: {at[0]} {at[1]}; '
        f'background-size: {100 * rows * methods}% {100 * columns}%"></div>'
        f'<div><b class="psnr">{psnr}</b>'
        f'<span class="rank">{rank}</span><div class="bar" aria-hidden="true">'
        f'<i class="told" style="width: {told:.2%}"></i></div>'
        f'<span class="certificate">{certificate}</span><div class="bar" aria-hidden="true">'
        f'<i class="digits" style="width: {digits:.2%}"></i></div>'
        f'<b class="verdict{"" if verdict == TRUSTED else " doubt"}">{escape(verdict)}</b>'
        "</div></div>"
    )


def _percent(place: int, count: int) -> str:
    """Where a picture of `count` frames in a row shows one of them."""
    return f"{100 * place / max(count - 1, 1):g}%"


def scale() -> str:
    """What the colours and the dot say."""
    colours = ", ".join(mpl.colors.to_hex(mpl.colormaps[MAP_COLOURS](x / 8)) for x in range(9))
    return (
        '<div class="scale"><span>PSNR 0 dB</span>'
        f'<i style="background: linear-gradient(to right, {colours})"></i>'
        f'<span>{BEST:.0f} dB or more</span><span><i class="dot"></i>'
        f"the attacker: “{TRUSTED}”</span></div>"
    )

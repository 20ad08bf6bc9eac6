"""Draw what records say of many images: Axes in, Axes out."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from rconv.lab.records import SUCCESS
from rconv.show.panels import INK, MAP_COLOURS, NOT_A_NUMBER, PAPER


def show_psnr(ax: Axes, records: Sequence[dict], label: str | None = None, **style: Any) -> Axes:
    """Draw the PSNR of the records' images, sorted, as one curve over their share.

    Parameters
    ----------
    ax
        Where to draw.
    records
        Records with the key ``psnr``, in dB; None stands for a value that is not finite. It
        counts as the worst, and has no point.
    label
        The curve's name in a legend.
    style
        Passed on to ``Axes.plot``.

    Returns
    -------
    Axes
        The same axes.
    """
    values = sorted(r["psnr"] if r["psnr"] is not None else -math.inf for r in records)
    share = [100 * (n + 0.5) / len(values) for n in range(len(values))]
    ax.plot(share, values, marker=".", markersize=4, linewidth=1, label=label, **style)
    if not ax.get_xlabel():
        ax.axhline(-10 * math.log10(SUCCESS), color="black", linewidth=0.8, linestyle=":")
        ax.set_xlabel("images (%), worst first")
        ax.set_ylabel("PSNR (dB)")
    return ax


def show_shares(
    ax: Axes,
    shares: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None = None,
) -> Axes:
    """Draw a matrix of shares, each as a coloured field with its number of percent.

    Parameters
    ----------
    ax
        Where to draw.
    shares
        Axes (row, column), in [0, 1]; not a number where there is none, drawn grey.
    rows, columns
        Their names.
    title
        Text above the matrix.

    Returns
    -------
    Axes
        The same `ax`.
    """
    colours = mpl.colormaps[MAP_COLOURS].with_extremes(bad=NOT_A_NUMBER)
    ax.imshow(shares, vmin=0, vmax=1, cmap=colours, aspect="auto")
    for i, line in enumerate(shares):
        for j, share in enumerate(line):
            known = not math.isnan(share)
            text = f"{math.floor(100 * share)}" if known else "–"  # 100 % means every one
            colour = PAPER if known and share < 0.6 else INK
            ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    if title is not None:
        ax.set_title(title)
    return ax


def show_sweep(ax: Axes, records: Sequence[dict], title: str | None = None) -> Axes:
    """Draw one layer's success and generic rank against its number of filters.

    Parameters
    ----------
    ax
        Where to draw.
    records
        Of `rconv.lab.underdetermined.sweep`, all of one layer: points are shares of images, lines
        shares of the unknowns, and each kind of constraints has a colour.
    title
        Text above the axes.

    Returns
    -------
    Axes
        The same `ax`.
    """
    for number, kind in enumerate(dict.fromkeys(r["constraints"] for r in records)):
        own = [r for r in records if r["constraints"] == kind]
        widths = [r["width"] for r in own]
        colour = ("#D55E00", "#0072B2")[number % 2]
        rank = [r["rank"] / r["unknowns"] for r in own]
        success = [r["successes"] / r["images"] for r in own]
        ax.plot(widths, rank, "--", color=colour, linewidth=1, label=f"{kind}: rank")
        marker = {"marker": "ox"[number % 2], "linestyle": "", "markersize": 6}
        ax.plot(widths, success, color=colour, label=f"{kind}: success", **marker)
    ax.axvline(records[0]["usual"], color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel("filters")
    ax.set_ylim(-0.05, 1.05)
    if title is not None:
        ax.set_title(title, fontsize=9)
    return ax


def show_progress(ax: Axes, records: Sequence[dict], title: str | None = None) -> Axes:
    """Draw the PSNR of attacks against their CPU time: a line per image, ending in its answer.

    Parameters
    ----------
    ax
        Where to draw.
    records
        Of `rconv.lab.comparison.compare`. Their key ``curve`` holds the points (CPU seconds with
        the preparation, PSNR in dB), a single one for attacks in closed form.
    title
        Text above the axes.

    Returns
    -------
    Axes
        The same `ax`.
    """
    methods = list(dict.fromkeys(r["method"] for r in records))
    for number, method in enumerate(methods):
        look = {"color": f"C{number}", "linewidth": 0.8, "alpha": 0.8}
        label = method
        for record in records:
            if record["method"] == method and record["curve"]:
                seconds, decibels = zip(*record["curve"], strict=True)
                marker = "osdv^x"[number % 6]
                ax.plot(seconds, decibels, **look)
                ax.plot(seconds[-1], decibels[-1], marker, **look, markersize=5, label=label)
                label = None
    ax.axhline(-10 * math.log10(SUCCESS), color="black", linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    ax.set_xlabel("CPU seconds")
    ax.set_ylabel("PSNR (dB)")
    if title is not None:
        ax.set_title(title, fontsize=9)
    return ax

"""What is open, closed and seen, as tables and figures."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from rconv.lab.records import FACTOR, Record, expected, value

WIDTH_HEADER = (
    *("filters", "images", "by equations", "with signs", "open", "flat (dB)", "minimum norm (dB)"),
    *("prior (dB)", "seconds"),
)
CALIBRATION_HEADER = ("images", "cases", "within a factor of 10", "expected too little")

EXACT = 100.0
"""PSNR in dB beyond which figures make no difference."""


def width_rows(records: Sequence[Record]) -> list[tuple]:
    """Rows under `WIDTH_HEADER`, one per number of filters, the most first."""
    rows = []
    for width in sorted({r["width"] for r in records}, reverse=True):
        own = [r for r in records if r["width"] == width]
        rows.append(
            (
                width,
                len(own),
                sum(r["by_rank"] for r in own),
                sum(r["full_rank"] for r in own),
                f"{statistics.median(r['gap'] for r in own):.0f}",
                *(_median(own, key) for key in ("flat", "least", "psnr")),
                f"{statistics.median(r['seconds'] for r in own):.1f}",
            )
        )
    return rows


def calibration_row(name: str, records: Sequence[Record]) -> tuple:
    """A row under `CALIBRATION_HEADER`: how often the expected error is of the true one's size."""
    near = sum(expected(r) for r in records)
    above = sum(r["error"] > FACTOR * r["expected_error"] for r in records)
    return name, len(records), near, above


def show_widths(ax: Axes, records: Sequence[Record]) -> Axes:
    """Draw the PSNR of every image against the filters, without the prior and with it.

    Parameters
    ----------
    ax
        Where to draw.
    records
        Those of `rconv.lab.underdetermined.underdetermined`.

    Returns
    -------
    Axes
        The same axes.
    """
    styles = (("least", "x", "minimum norm", -0.12), ("psnr", "o", "prior", 0.12))
    for key, marker, label, shift in styles:
        own = [r for r in records if not r["full_rank"]]
        ax.plot(
            [r["width"] + shift for r in own],
            [_psnr(r, key) for r in own],
            marker,
            markersize=4,
            alpha=0.7,
            label=label,
        )
    closed = [r for r in records if r["full_rank"]]
    if closed:
        ax.plot([r["width"] for r in closed], [_psnr(r, "psnr") for r in closed], "k^",
                markersize=4, label="determined")  # fmt: skip
    ax.set(xlabel="filters", ylabel="PSNR (dB)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=9)
    return ax


def show_calibration(ax: Axes, records: Sequence[Record], label: str) -> Axes:
    """Draw the true relative error against the expected one, on logarithmic axes.

    Parameters
    ----------
    ax
        Where to draw.
    records
        With "error" and "expected_error".
    label
        Their name in a legend.

    Returns
    -------
    Axes
        The same axes.
    """
    known = [r for r in records if r["error"]]
    ax.plot([r["expected_error"] for r in known], [r["error"] for r in known], ".", label=label)
    ax.set(xscale="log", yscale="log", xlabel="expected error", ylabel="true error")
    return ax


def _psnr(record: Record, key: str) -> float:
    return min(value(record[key], EXACT), EXACT)


def _median(records: Sequence[Record], key: str) -> str:
    """Median and worst PSNR; None stands for an exact image."""
    numbers = [value(r[key], math.inf) for r in records]
    return f"{statistics.median(numbers):.0f} ({min(numbers):.0f})"

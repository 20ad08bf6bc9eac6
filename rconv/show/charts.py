"""Draw what records say of many images; functions take Axes, draw on them and return them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rconv.extras import extra
from rconv.lab.channels import SENT
from rconv.lab.records import SUCCESS, Record, value
from rconv.lab.success_rates import INITIAL_WEIGHTS, rate
from rconv.show.comparison_tables import STARTS, Defended, find
from rconv.show.figures import (
    BLUE,
    GREEN,
    INK,
    MAP_COLOURS,
    METHODS,
    NOT_A_NUMBER,
    ORANGE,
    PAPER,
    TITLE,
)

with extra():
    import matplotlib as mpl
    from matplotlib.axes import Axes

BAR = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
"""The line of a success, or of what a layer has."""

EXACT = 100.0
"""PSNR in dB beyond which figures make no difference."""


def name_lines(ax: Axes) -> Axes:
    """Write each line's label where it ends or leaves the plot, in place of a legend."""
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    ax.autoscale_view()
    seen = ax.viewLim
    ends = {line: [xy for xy in line.get_xydata() if seen.contains(*xy)][-1] for line in lines}
    gap, places = 11 * ax.figure.dpi / 72, []
    for line in sorted(lines, key=lambda line: ax.transData.transform(ends[line])[1]):
        place = ax.transData.transform(ends[line])[1]
        places.append(max(place, places[-1] + gap) if places else place)
        shift = (places[-1] - place) * 72 / ax.figure.dpi
        look = {"color": line.get_color(), "fontsize": TITLE, "va": "center"}
        ax.annotate(line.get_label(), ends[line], (6, shift), textcoords="offset points", **look)
    return ax


def show_dots(
    ax: Axes, rows: Mapping[str, Mapping[str, Sequence[float]]], limit: float = math.inf
) -> Axes:
    """Draw a long table: a line for each row, on it a dot for each method, in its colour.

    Name of a row → name of a dot → (value,), or (value, low, high) with a bar from low to high.
    `limit` is the largest value that is drawn. What is not finite has no dot.
    """
    methods = dict.fromkeys(name for dots in rows.values() for name in dots)
    for number, name in enumerate(methods):
        own = [(place, dots[name]) for place, dots in enumerate(rows.values()) if name in dots]
        heights = [place + 0.16 * (number - (len(methods) - 1) / 2) for place, _ in own]
        drawn = [[min(v, limit) for v in (*given, *given, *given)[:3]] for _, given in own]
        drawn = [[v if math.isfinite(v) else math.nan for v in line] for line in drawn]
        values, low, high = zip(*drawn, strict=True)
        look = {"color": METHODS.get(name, f"C{number}")}
        ax.hlines(heights, low, high, linewidth=1.2, **look)
        ax.plot(values, heights, "osd^vP"[number % 6], markersize=4, label=name, **look)
    ax.set_yticks(range(len(rows)), rows, fontsize=TITLE)
    ax.set(ylim=(len(rows) - 0.4, -0.6), axisbelow=True)
    ax.grid(axis="y", color="0.85", linewidth=0.6)
    ax.tick_params(axis="y", length=0)
    columns = 3 if max(map(len, methods)) < 10 else 2
    ax.figure.legend(loc="outside upper center", ncols=columns)
    return ax


def show_psnr(ax: Axes, records: Sequence[Record], label: str | None = None, **style: Any) -> Axes:
    """Draw the PSNR of the records' images, sorted, as one curve over their share.

    A PSNR that is not finite, None in the record, counts as the worst and has no point. `label`
    is the curve's name in a legend; `style` goes to ``Axes.plot``.
    """
    values = sorted(value(r["psnr"], -math.inf) for r in records)
    share = [100 * (n + 0.5) / len(values) for n in range(len(values))]
    ax.plot(share, values, marker=".", markersize=4, linewidth=1, label=label, **style)
    if not ax.get_xlabel():
        ax.axhline(-10 * math.log10(SUCCESS), **BAR)
        ax.set(xlabel="images (%), worst first", ylabel="PSNR (dB)")
    return ax


def show_shares(
    ax: Axes,
    shares: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None = None,
) -> Axes:
    """Draw a matrix of shares, each as a coloured field with its number of percent.

    Shares are in [0, 1], with axes (row, column); NaN is drawn grey.
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


def show_sweep(ax: Axes, records: Sequence[Record], title: str | None = None) -> Axes:
    """Draw one layer's success and generic rank against its number of filters.

    The records are those of `rconv.lab.underdetermined.sweep` for one layer. Points are shares of
    images, lines shares of the unknowns, and each kind of constraints has a colour.
    """
    for number, kind in enumerate(dict.fromkeys(r["constraints"] for r in records)):
        colour = METHODS[kind]
        chosen = [r for r in records if r["constraints"] == kind]
        widths = [r["width"] for r in chosen]
        rank = [r["rank"] / r["unknowns"] for r in chosen]
        success = [r["successes"] / r["images"] for r in chosen]
        ax.plot(widths, rank, "--", color=colour, linewidth=1, label=f"{kind}: rank")
        marker = {"marker": "ox"[number % 2], "linestyle": "", "markersize": 6}
        ax.plot(widths, success, color=colour, label=f"{kind}: success", **marker)
    ax.axvline(records[0]["usual"], **BAR)
    ax.set(xlabel="filters", ylim=(-0.05, 1.05))
    return _titled(ax, title)


def show_progress(ax: Axes, records: Sequence[Record], title: str | None = None) -> Axes:
    """Draw the PSNR of attacks against their CPU time: a line per image, ending in its answer.

    The records are those of `rconv.lab.comparison.compare`; their key ``curve`` holds the points
    (CPU seconds with the preparation, PSNR in dB), a single one for attacks in closed form.
    """
    for number, method in enumerate(dict.fromkeys(r["method"] for r in records)):
        look = {"color": METHODS[method], "linewidth": 0.8, "alpha": 0.8}
        label = method
        for curve in (r["curve"] for r in records if r["method"] == method and r["curve"]):
            seconds, decibels = zip(*curve, strict=True)
            ax.plot(seconds, decibels, **look)
            end = seconds[-1], decibels[-1], "osdv^x"[number % 6]
            ax.plot(*end, **look, markersize=5, label=label)
            label = None
    ax.axhline(-10 * math.log10(SUCCESS), **BAR)
    ax.set(xscale="log", xlabel="CPU seconds", ylabel="PSNR (dB)")
    return _titled(ax, title)


def show_rates(ax: Axes, records: Sequence[Record], method: str, title: str | None = None) -> Axes:
    """Draw a method's rates against what is sent, with their intervals.

    The records are cells of one network, made by `rconv.lab.success_rates`. Each initialisation
    has a colour and is shifted a little.
    """
    for number, start in enumerate(INITIAL_WEIGHTS):
        cells = [(x, find(records, start, sent, method)) for x, sent in enumerate(SENT)]
        known = [(x, *rate(r)) for x, r in cells if r is not None and r["refusal"] is None]
        places = [x + 0.2 * (number - 1) for x, *_ in known]
        # A rate of exactly 0 or 1 may lie a rounding error outside its interval.
        bars = [
            [max(0.0, share - low) for _, share, low, _ in known],
            [max(0.0, high - share) for _, share, _, high in known],
        ]
        style = {"fmt": "osd"[number], "capsize": 3, "markersize": 5}
        style["color"] = (BLUE, ORANGE, GREEN)[number]
        ax.errorbar(places, [share for _, share, *_ in known], bars, label=STARTS[start], **style)
    ax.set_xticks(range(len(SENT)), [sent.replace("weights, ", "") for sent in SENT], rotation=30)
    ax.set(xlim=(-0.5, len(SENT) - 0.5), ylim=(-0.04, 1.04))
    return _titled(ax, title)


def show_widths(ax: Axes, records: Sequence[Record]) -> Axes:
    """Draw the PSNR of every image against the filters, without the prior and with it.

    The records are those of `rconv.lab.underdetermined.underdetermined`.
    """
    open_ones = [r for r in records if not r["full_rank"]]
    closed = [r for r in records if r["full_rank"]]
    kinds = (
        (open_ones, "least", "x", "minimum norm", -0.12, {"alpha": 0.7}),
        (open_ones, "psnr", "o", "prior", 0.12, {"alpha": 0.7}),
        (closed, "psnr", "^", "determined", 0.0, {"color": "black"}),
    )
    for chosen, key, marker, label, shift, look in kinds:
        if chosen:
            widths = [r["width"] + shift for r in chosen]
            psnr = [min(value(r[key], EXACT), EXACT) for r in chosen]
            ax.plot(widths, psnr, marker, markersize=4, label=label, **look)
    ax.set(xlabel="filters", ylabel="PSNR (dB)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=9)
    return ax


def show_gain(ax: Axes, groups: Sequence[Defended]) -> Axes:
    """Draw the gain over a flat image against a defence's strength, a colour for each attacker.

    The groups are those of `rconv.show.comparison_tables.by_defence`. Lines are medians over the
    images, triangles the best image.
    """
    for kind in dict.fromkeys(g.attacker for g in groups):
        own = [g for g in groups if g.attacker == kind]
        strengths, look = [g.strength for g in own], {"color": METHODS[kind]}
        ax.plot(strengths, [g.median("gain").value for g in own], "o-", label=kind, **look)
        ax.plot(strengths, [g.best("gain") for g in own], "^:", label=f"{kind}, best", **look)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xscale="log", ylabel="gain (dB)")
    ax.legend()
    return ax


def show_calibration(ax: Axes, records: Sequence[Record], label: str) -> Axes:
    """Draw the true relative error against the expected one, on logarithmic axes.

    The records have the keys "error" and "expected_error"; an error of 0 has no point.
    """
    known = [r for r in records if r["error"]]
    ax.plot([r["expected_error"] for r in known], [r["error"] for r in known], ".", label=label)
    ax.set(xscale="log", yscale="log", xlabel="expected error", ylabel="true error")
    return ax


def _titled(ax: Axes, title: str | None) -> Axes:
    if title is not None:
        ax.set_title(title, fontsize=TITLE)
    return ax

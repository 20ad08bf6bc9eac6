"""Tables and curves of `rconv.lab.success_rates`: rates, the verdict, the quality."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from rconv.lab.channels import SENT
from rconv.lab.records import Record
from rconv.lab.success_rates import INITIAL_WEIGHTS, VARIANTS, rate

STARTS = {"uniform": "±0.5, the paper's", "default": "PyTorch's", "trained": "PyTorch's, trained"}
"""`INITIAL_WEIGHTS` as a page calls them."""

RATE_HEADER = ("initialisation", "sent", *VARIANTS)
VERDICT_HEADER = (
    "initialisation",
    "sent",
    "method",
    "images",
    "reconstructed",
    "called unique",
    "of these wrong",
    "reconstructed, not called unique",
)
QUALITY_HEADER = (
    "initialisation",
    "sent",
    "method",
    "images",
    "PSNR median",
    "worst",
    "gain median",
    "SSIM median",
    "failed by",
)
COLOURS = ("#0072B2", "#D55E00", "#009E73")
MISSING = "–"


def find(records: Sequence[Record], start: str, sent: str, method: str) -> Record | None:
    """The cell of a table, or None where it was left out."""
    key = start, sent, method
    return next((r for r in records if _key(r) == key), None)


def rate_rows(records: Sequence[Record]) -> list[tuple]:
    """One row per initialisation and way of sending; see `RATE_HEADER`.

    A cell has the successes, their number and their share's interval in percent; "refuses" where
    the method does not take the network; a dash where nothing was tried.
    """
    return [
        (STARTS[start], sent, *(_rate(find(records, start, sent, method)) for method in VARIANTS))
        for start in INITIAL_WEIGHTS
        for sent in SENT
    ]


def _rate(record: Record | None) -> str:
    if record is None:
        return MISSING
    if record["refusal"] is not None:
        return "refuses"
    _, low, high = rate(record)
    share = f"{sum(record['successes'])} of {sum(record['images'])}"
    return f"{share}<br>{100 * low:.0f} to {100 * high:.0f} %"


def verdict_rows(records: Sequence[Record]) -> list[tuple]:
    """One row per cell of a method that has a verdict; see `VERDICT_HEADER`."""
    return [
        (*_names(r), *(sum(r[key]) for key in ("images", "successes", "unique", "false", "missed")))
        for r in records
        if r["unique"] is not None
    ]


def quality_rows(records: Sequence[Record]) -> list[tuple]:
    """One row per cell that was measured; see `QUALITY_HEADER`. PSNR and gain are in decibels."""
    return [
        (
            *_names(r),
            sum(r["images"]),
            *(f"{r[key]:.0f}" for key in ("psnr_median", "psnr_worst", "gain_median")),
            f"{r['ssim_median']:.3f}",
            ", ".join(f"{name} {count}" for name, count in r["reasons"].items()) or MISSING,
        )
        for r in records
        if r["refusal"] is None
    ]


def show_rates(ax: Axes, records: Sequence[Record], method: str, title: str | None = None) -> Axes:
    """Draw a method's rates against what is sent, with their intervals.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    records : sequence of dict
        Cells of one network. Each initialisation has a colour and stands a little aside.
    method : str
        One of `VARIANTS`.
    title : str, optional
        Text above the axes.

    Returns
    -------
    Axes
        The same `ax`.
    """
    for number, start in enumerate(INITIAL_WEIGHTS):
        cells = [(x, find(records, start, sent, method)) for x, sent in enumerate(SENT)]
        known = [(x, rate(r)) for x, r in cells if r is not None and r["refusal"] is None]
        places = [x + 0.2 * (number - 1) for x, _ in known]
        shares = [own[0] for _, own in known]
        # A rate of exactly 0 or 1 may lie a rounding error outside its interval.
        bars = [
            [max(0.0, share - low) for _, (share, low, _) in known],
            [max(0.0, high - share) for _, (share, _, high) in known],
        ]
        style = {"fmt": "osd"[number], "capsize": 3, "color": COLOURS[number], "markersize": 5}
        ax.errorbar(places, shares, bars, label=STARTS[start], **style)
    ax.set_xticks(range(len(SENT)), [sent.replace("weights, ", "") for sent in SENT], rotation=30)
    ax.set_xlim(-0.5, len(SENT) - 0.5)
    ax.set_ylim(-0.04, 1.04)
    if title is not None:
        ax.set_title(title, fontsize=9)
    return ax


def _key(record: Record) -> tuple[str, str, str]:
    return record["initialisation"], record["sent"], record["method"]


def _names(record: Record) -> tuple[str, str, str]:
    return STARTS[record["initialisation"]], record["sent"], record["method"]

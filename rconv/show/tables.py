"""Tables of records: columns that are computed from groups of records, and Markdown for a page."""

import math
import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rconv.lab.intervals import rate_interval
from rconv.lab.records import FACTOR, Record, expected, open_directions, value, won
from rconv.show.numbers import scientific

Group = Any
"""What one row is computed from; for most tables a list of records."""


@dataclass(frozen=True)
class Table:
    """A kind of table: one row for each group, one cell for each column.

    Parameters
    ----------
    groups : callable
        Takes what the table is made of, and returns the groups in the order of the rows.
    columns : dict
        Name of each column → what computes its cell from a group.
    """

    groups: Callable[[Any], Iterable[Group]]
    columns: dict[str, Callable[[Group], Any]]

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.columns)

    def rows(self, source: Any) -> list[tuple]:
        """The cells of every group."""
        return [tuple(c(group) for c in self.columns.values()) for group in self.groups(source)]

    def markdown(self, source: Any) -> str:
        """The whole table for a page."""
        return markdown(self.header, self.rows(source))


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, its numbers as `scientific` writes them."""
    cells = ([re.sub(r"(?<![\w.–-])-(?=\d)", "−", str(cell)) for cell in row] for row in rows)
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(scientific("| " + " | ".join(map(str, line)) + " |") for line in lines)


def grouped(
    records: Iterable[Record], key: Callable[[Record], Hashable]
) -> dict[Any, list[Record]]:
    """Key → its records, in the order in which the keys occur first."""
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def first(key: str) -> Callable[[Sequence[Record]], Any]:
    """A column of what all records of a group share."""
    return lambda group: group[0][key]


def typical(key: str, spec: str) -> Callable[[Sequence[Record]], str]:
    """A column of medians of a quality, see `median`."""
    return lambda group: format(median(group, key), spec)


def median(records: Iterable[Record], key: str) -> float:
    """Median of a quality of which more is better; what is not finite counts as the worst."""
    return statistics.median(value(r[key], -math.inf) for r in records)


def decibel(psnr: float | None) -> str:
    """A PSNR with one decimal, or a dash where there is none."""
    return f"{psnr:.1f}" if psnr is not None and math.isfinite(psnr) else "–"


def span(numbers: Iterable[int]) -> str:
    """One number where all are equal, else the smallest and the largest."""
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def setting(record: Record) -> tuple[str, ...]:
    """What distinguishes the rows of `QUALITY`."""
    return record["activation"], str(record["constraints"]), record["dtype"]


def success(records: Sequence[Record]) -> str:
    """How many were reconstructed, above the interval of the rate over images, in percent.

    An image that was attacked through several networks is one draw, with several outcomes.
    """
    images = grouped(records, lambda r: r["index"]).values()
    low, high = rate_interval([won(group) for group in images], [len(group) for group in images])
    return f"{won(records)} of {len(records)}<br>{100 * low:.0f} to {100 * high:.0f} %"


def worst(records: Sequence[Record], count: int) -> list[Record]:
    """The records of largest error, worst first."""
    return sorted(records, key=_error, reverse=True)[:count]


def explain(record: Record) -> str:
    """Why this image came out as it did, in one sentence, from its own record."""
    if not record.get("layers"):
        return record["diagnostic"] or "full rank in every layer"
    short = [layer for layer in record["layers"] if open_directions(layer) > 0]
    if not short:
        condition = max(value(layer["condition"], math.inf) for layer in record["layers"])
        return f"full rank in every layer; condition up to {condition:.0e}"
    layer = max(short, key=open_directions)
    if layer["rank"] == 0:
        return "the gradients are zero: the softmax is saturated at the right class"
    return (
        f"{layer['name']} has rank {layer['rank']} of {layer['unknowns']} "
        f"({layer['constraints']} constraints)"
    )


def _error(record: Record) -> float:
    return value(record["mse"], math.inf)


def _failures(records: Sequence[Record]) -> list[list[Record]]:
    """Images that were lost by setting and diagnostic, the most first.

    Diagnostics are compared without their numbers, which differ from image to image.
    """
    lost = (r for r in records if not won([r]))
    kinds = grouped(lost, lambda r: (setting(r), _kind(r["diagnostic"])))
    return sorted(kinds.values(), key=len, reverse=True)


def _kind(diagnostic: str) -> str:
    short = re.sub(" has rank .*", " is rank-deficient", diagnostic or "the attack gave no reason")
    return re.sub(r"\b\d\S*", "…", short)


def _fewest(
    constraints: str, enough: Callable[[Record], bool]
) -> Callable[[Sequence[Record]], int | str]:
    """A column of the fewest filters that are enough, with one kind of constraints."""

    def cell(group: Sequence[Record]) -> int | str:
        widths = (r["width"] for r in group if r["constraints"] == constraints and enough(r))
        return min(widths, default="–")

    return cell


def _predicted(record: Record) -> bool:
    return record["predicted"]


def _succeeded(record: Record) -> bool:
    return record["successes"] == record["images"]


def _psnr_with_worst(key: str) -> Callable[[Sequence[Record]], str]:
    """A column of the median PSNR with the worst; None stands for an exact image."""

    def cell(group: Sequence[Record]) -> str:
        numbers = [value(r[key], math.inf) for r in group]
        return f"{statistics.median(numbers):.0f} ({min(numbers):.0f})"

    return cell


QUALITY = Table(
    lambda records: grouped(records, setting).values(),
    {
        "activation": first("activation"),
        "constraints": lambda group: str(group[0]["constraints"]),
        "dtype": first("dtype"),
        "success": success,
        "unique": lambda group: sum(r["unique"] for r in group),
        "MSE median": lambda group: f"{statistics.median(map(_error, group)):.0e}",
        "MSE worst": lambda group: f"{max(map(_error, group)):.0e}",
        "PSNR median": typical("psnr", ".0f"),
        "gain median": typical("gain", ".0f"),
        "SSIM median": typical("ssim", ".4f"),
        "ms / image": lambda group: f"{1e3 * statistics.median(r['seconds'] for r in group):.0f}",
    },
)
"""One row per setting: how many images were reconstructed, and how good all of them are.

What is not finite counts as the worst.
"""

FAILURES = Table(
    _failures,
    {
        "activation": first("activation"),
        "constraints": lambda group: str(group[0]["constraints"]),
        "dtype": first("dtype"),
        "images": len,
        "why": lambda group: _kind(group[0]["diagnostic"]),
    },
)
"""One row per setting and reason, with the number of images that failed."""

SWEEP = Table(
    lambda records: grouped(records, lambda r: r["layer"]).values(),
    {
        "layer": first("layer"),
        "has": first("usual"),
        "paper's: predicted from": _fewest("paper", _predicted),
        "paper's: all images from": _fewest("paper", _succeeded),
        "auto: predicted from": _fewest("auto", _predicted),
        "auto: all images from": _fewest("auto", _succeeded),
    },
)
"""One row per layer of `rconv.lab.underdetermined.sweep`: its filters, and the fewest needed."""

RANKS = Table(
    lambda records: zip(*(r["layers"] for r in records), strict=True),
    {
        "layer": first("name"),
        "unknowns": first("unknowns"),
        "gradient rows": lambda layers: span(layer["gradient_rows"] for layer in layers),
        "weight rows": lambda layers: span(layer["weight_rows"] for layer in layers),
        "rank": lambda layers: span(layer["rank"] for layer in layers),
        "condition": lambda layers: format(
            statistics.median(value(layer["condition"], math.inf) for layer in layers), ".0f"
        ),
        "from": lambda layers: ", ".join(sorted({layer["constraints"] for layer in layers})),
    },
)
"""One row per layer over all records, from the head down."""

WIDTHS = Table(
    lambda records: grouped(
        sorted(records, key=lambda r: -r["width"]), lambda r: r["width"]
    ).values(),
    {
        "filters": first("width"),
        "images": len,
        "by equations": lambda group: sum(r["by_rank"] for r in group),
        "with signs": lambda group: sum(r["full_rank"] for r in group),
        "open": lambda group: f"{statistics.median(r['gap'] for r in group):.0f}",
        "flat (dB)": _psnr_with_worst("flat"),
        "minimum norm (dB)": _psnr_with_worst("least"),
        "prior (dB)": _psnr_with_worst("psnr"),
        "seconds": lambda group: f"{statistics.median(r['seconds'] for r in group):.1f}",
    },
)
"""One row per number of filters of `rconv.lab.underdetermined`, the most first."""

CALIBRATION = Table(
    lambda named: named.items(),
    {
        "images": lambda item: item[0],
        "cases": lambda item: len(item[1]),
        "within a factor of 10": lambda item: sum(expected(r) for r in item[1]),
        "expected too little": lambda item: sum(
            r["error"] > FACTOR * r["expected_error"] for r in item[1]
        ),
    },
)
"""Name → records: how often the expected error is of the true one's size."""

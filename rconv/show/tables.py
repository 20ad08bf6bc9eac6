"""What a list of records says, as rows for a table, and as Markdown for a page."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rconv.lab.intervals import rate_interval
from rconv.lab.records import Record, open_directions, value, won
from rconv.show.numbers import scientific

QUALITY_HEADER = (
    "activation",
    "constraints",
    "dtype",
    "success",
    "unique",
    "MSE median",
    "MSE worst",
    "PSNR median",
    "gain median",
    "SSIM median",
    "ms / image",
)
FAILURE_HEADER = ("activation", "constraints", "dtype", "images", "why")
SWEEP_HEADER = (
    "layer",
    "has",
    "paper's: predicted from",
    "all images from",
    "auto: predicted from",
    "all images from",
)
RANK_HEADER = ("layer", "unknowns", "gradient rows", "weight rows", "rank", "condition", "from")


def setting(record: Record) -> tuple[str, ...]:
    """What distinguishes the lines of a quality table."""
    return record["activation"], str(record["constraints"]), record["dtype"]


def quality_rows(records: Sequence[Record]) -> list[tuple]:
    """One row per setting, in the order of the records; see `QUALITY_HEADER`.

    Success counts the images with MSE below `SUCCESS`, above the interval of their rate in percent;
    where a value is not finite, it counts as the worst.
    """
    rows = []
    for key, group in groupby(records, setting):
        own = list(group)
        errors = [value(r["mse"], float("inf")) for r in own]
        rows.append(
            (
                *key,
                success(own),
                sum(r["unique"] for r in own),
                f"{statistics.median(errors):.0e}",
                f"{max(errors):.0e}",
                f"{median(own, 'psnr'):.0f}",
                f"{median(own, 'gain'):.0f}",
                f"{median(own, 'ssim'):.4f}",
                f"{1e3 * statistics.median(r['seconds'] for r in own):.0f}",
            )
        )
    return rows


def success(records: Sequence[Record]) -> str:
    """How many were reconstructed, above the interval of the rate over images, in percent.

    An image that was attacked through several networks is one draw, with several outcomes.
    """
    images: dict[int, list[Record]] = {}
    for record in records:
        images.setdefault(record["index"], []).append(record)
    counts = [won(own) for own in images.values()], [len(own) for own in images.values()]
    low, high = rate_interval(*counts)
    return f"{won(records)} of {len(records)}<br>{100 * low:.0f} to {100 * high:.0f} %"


def failure_rows(records: Sequence[Record]) -> list[tuple]:
    """One row per setting and reason of failure, with the number of images; the most first.

    The attack's own doubt is the reason, without its numbers, which differ from image to image.
    """
    lost = Counter((*setting(r), _kind(r["doubt"])) for r in records if not won([r]))
    return [(*key, count, why) for (*key, why), count in lost.most_common()]


def _kind(doubt: str) -> str:
    short = re.sub(" has rank .*", " is short of rank", doubt or "the attack had no doubt")
    return re.sub(r"\b\d\S*", "…", short)


def median(records: Iterable[Record], key: str) -> float:
    """Median of a quality of which more is better; what is not finite counts as the worst."""
    return statistics.median(value(r[key], float("-inf")) for r in records)


def sweep_rows(records: Sequence[Record]) -> list[tuple]:
    """One row per layer of `rconv.lab.underdetermined.sweep`; see `SWEEP_HEADER`."""
    rows = []
    for layer in dict.fromkeys(r["layer"] for r in records):
        own = [r for r in records if r["layer"] == layer]
        found: list[int | str] = []
        for kind in dict.fromkeys(r["constraints"] for r in own):
            of_kind = [r for r in own if r["constraints"] == kind]
            found.append(_first_width(r for r in of_kind if r["predicted"]))
            found.append(_first_width(r for r in of_kind if r["successes"] == r["images"]))
        rows.append((layer, own[0]["usual"], *found))
    return rows


def _first_width(records: Iterable[Record]) -> int | str:
    return min((r["width"] for r in records), default="–")


def rank_rows(records: Sequence[Record]) -> list[tuple]:
    """One row per layer over all records, from the head down; see `RANK_HEADER`."""
    rows = []
    for layers in zip(*(r["layers"] for r in records), strict=True):
        conditions = [value(layer["condition"], float("inf")) for layer in layers]
        rows.append(
            (
                layers[0]["name"],
                layers[0]["unknowns"],
                span(layer["gradient_rows"] for layer in layers),
                span(layer["weight_rows"] for layer in layers),
                span(layer["rank"] for layer in layers),
                f"{statistics.median(conditions):.0f}",
                ", ".join(sorted({layer["constraints"] for layer in layers})),
            )
        )
    return rows


def explain(record: Record) -> str:
    """Why this image came out as it did, in one sentence, from its own record."""
    if not record.get("layers"):
        return record["doubt"] or "full rank in every layer"
    short = [layer for layer in record["layers"] if open_directions(layer) > 0]
    if not short:
        return (
            f"full rank in every layer; condition up to "
            f"{max(value(x['condition'], float('inf')) for x in record['layers']):.0e}"
        )
    worst = max(short, key=open_directions)
    if worst["rank"] == 0:
        return "the gradients are zero: the softmax is saturated at the right class"
    return (
        f"{worst['name']} has rank {worst['rank']} of {worst['unknowns']} "
        f"({worst['constraints']} constraints)"
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, its numbers as `rconv.show.numbers` writes them."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(scientific("| " + " | ".join(map(str, line)) + " |") for line in lines)


def decibel(psnr: float | None) -> str:
    """A PSNR with one decimal, or a dash where there is none."""
    return f"{psnr:.1f}" if psnr is not None and math.isfinite(psnr) else "–"


def span(numbers: Iterable[int]) -> str:
    """One number where all are equal, else the smallest and the largest."""
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def worst(records: Sequence[Record], count: int) -> list[Record]:
    """The records of largest error, worst first."""
    return sorted(records, key=lambda r: -value(r["mse"], float("inf")))[:count]

"""What the records of a comparison say, attack by attack, as rows for a table."""

import statistics
from collections.abc import Iterable, Sequence
from math import inf, isfinite

from rconv.lab.comparison import EXPLAINED
from rconv.lab.intervals import Median, clustered_median
from rconv.lab.methods import METHODS
from rconv.lab.records import Record, value, won
from rconv.show.tables import decibel, median

HEADER = (
    "attack",
    "dtype",
    "n",
    "explains the gradients",
    "MSE < 10⁻⁶",
    "PSNR (dB)",
    "worst",
    "gain (dB)",
    "SSIM",
    "CPU s",
)


def rows(records: Iterable[Record]) -> list[tuple]:
    """One row per attack and dtype, see `HEADER`; the attacks in the order of `METHODS`.

    A value that is not finite counts as the worst. PSNR is the median over the seeds of the
    model, with the interval of `rconv.lab.intervals`; gain, SSIM and seconds are medians over the
    images.
    """
    return [(method, dtype, *_cells(own)) for (method, dtype), own in groups(records).items()]


def groups(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """(attack, dtype) → its records, the attacks in the order of `METHODS`."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: METHODS.index(r["method"])):
        found.setdefault((record["method"], record["dtype"]), []).append(record)
    return found


def shared(records: Sequence[Record]) -> list[Record]:
    """The records of those pairs of seed and image that every attack was given."""
    methods = {r["method"] for r in records}
    met: dict[tuple, set[str]] = {}
    for r in records:
        met.setdefault(_pair(r), set()).add(r["method"])
    return [r for r in records if met[_pair(r)] == methods]


def explained(records: Iterable[Record]) -> int:
    """How many answers have the observed gradients, as the attacker measures them."""
    return sum(value(r["gradient_residual"], inf) < EXPLAINED for r in records)


def decibels(records: Sequence[Record]) -> Median:
    """Median PSNR over the seeds, with its interval."""
    return clustered_median([value(r["psnr"], -inf) for r in records], [r["seed"] for r in records])


def interval(found: Median) -> str:
    """A median in dB with its interval, or alone where there is one seed only."""
    if found.clusters == 1:
        return decibel(found.value)
    return f"{decibel(found.value)} [{decibel(found.low)}, {decibel(found.high)}]"


def seconds(records: Sequence[Record]) -> str:
    """CPU seconds of an image, and those of the preparation where there is one."""
    own, before = (statistics.median(r[key] for r in records) for key in ("seconds", "preparation"))
    return f"{own:.2g}" + (f" + {before:.2g}" if before else "")


def _cells(records: Sequence[Record]) -> tuple:
    found = decibels(records)
    return (
        f"{found.count} in {found.clusters}",
        f"{explained(records)} of {len(records)}",
        f"{won(records)} of {len(records)}",
        interval(found),
        decibel(min(value(r["psnr"], -inf) for r in records)),
        decibel(median(records, "gain")),
        f"{similarity:.3f}" if isfinite(similarity := median(records, "ssim")) else "–",
        seconds(records),
    )


def _pair(record: Record) -> tuple[int, int]:
    return record["seed"], record["index"]

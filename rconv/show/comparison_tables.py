"""Tables that compare: attacks, initialisations, defences, and the published figures with ours."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf, isfinite

from rconv.lab.architectures import ARCHITECTURES, CHOSEN, build
from rconv.lab.channels import SENT
from rconv.lab.comparison import EXPLAINED
from rconv.lab.intervals import MEDIAN_LEVEL, Median, clustered_median
from rconv.lab.methods import METHODS
from rconv.lab.published import Cell, Judgement
from rconv.lab.records import Record, value, won
from rconv.lab.success_rates import INITIAL_WEIGHTS, VARIANTS, rate
from rconv.show.tables import Table, decibel, grouped, median

MISSING = "–"

# Attacks


def by_attack(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """(attack, dtype) → its records, the attacks in the order of `METHODS`."""
    ordered = sorted(records, key=lambda r: METHODS.index(r["method"]))
    return grouped(ordered, lambda r: (r["method"], r["dtype"]))


def shared(records: Sequence[Record]) -> list[Record]:
    """The records of those pairs of seed and image that every attack was given."""
    methods = {r["method"] for r in records}
    pairs = grouped(records, _pair)
    return [r for r in records if {group["method"] for group in pairs[_pair(r)]} == methods]


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


def _pair(record: Record) -> tuple[int, int]:
    return record["seed"], record["index"]


def _pairs(records: Sequence[Record]) -> str:
    return f"{len(records)} in {len({r['seed'] for r in records})}"


def _similarity(records: Sequence[Record]) -> str:
    ssim = median(records, "ssim")
    return f"{ssim:.3f}" if isfinite(ssim) else MISSING


def _seconds(records: Sequence[Record]) -> str:
    """CPU seconds of an image, and those of the preparation where there is one."""
    group, before = (
        statistics.median(r[key] for r in records) for key in ("seconds", "preparation")
    )
    return f"{group:.2g}" + (f" + {before:.2g}" if before else "")


ATTACKS = Table(
    lambda records: by_attack(records).values(),
    {
        "attack": lambda group: group[0]["method"],
        "dtype": lambda group: group[0]["dtype"],
        "n": _pairs,
        "explains the gradients": lambda group: f"{explained(group)} of {len(group)}",
        "MSE < 10⁻⁶": lambda group: f"{won(group)} of {len(group)}",
        "PSNR (dB)": lambda group: interval(decibels(group)),
        "worst": lambda group: decibel(min(value(r["psnr"], -inf) for r in group)),
        "gain (dB)": lambda group: decibel(median(group, "gain")),
        "SSIM": _similarity,
        "CPU s": _seconds,
    },
)
"""One row per attack and dtype; a value that is not finite counts as the worst.

PSNR is the median over the seeds of the model, with the interval of `rconv.lab.intervals`; gain,
SSIM and seconds are medians over the images.
"""

# Initialisations: the cells of `rconv.lab.success_rates`

STARTS = {"uniform": "±0.5, the paper's", "default": "PyTorch's", "trained": "PyTorch's, trained"}
"""`rconv.lab.success_rates.INITIAL_WEIGHTS` as a page calls them."""


def find(records: Sequence[Record], start: str, sent: str, method: str) -> Record | None:
    """The cell of an initialisation, a kind of message and a method; None where it was left out."""
    wanted = {"initialisation": start, "sent": sent, "method": method}
    return next((r for r in records if wanted.items() <= r.items()), None)


def _rate(method: str) -> Callable[[tuple], str]:
    """A column of a method's successes, above their share's interval in percent."""

    def cell(row: tuple[Sequence[Record], str, str]) -> str:
        record = find(*row, method)
        if record is None:
            return MISSING
        if record["refusal"] is not None:
            return "refuses"
        _, low, high = rate(record)
        share = f"{sum(record['successes'])} of {sum(record['images'])}"
        return f"{share}<br>{100 * low:.0f} to {100 * high:.0f} %"

    return cell


RATES = Table(
    lambda records: [(records, s, sent) for s in INITIAL_WEIGHTS for sent in SENT],
    {
        "initialisation": lambda row: STARTS[row[1]],
        "sent": lambda row: row[2],
        **{method: _rate(method) for method in VARIANTS},
    },
)
"""One row per initialisation and kind of message, a column per method.

A cell has the successes, their number and their share's interval in percent; "refuses" where the
method does not take the network; a dash where nothing was tried.
"""

_CELL = {
    "initialisation": lambda r: STARTS[r["initialisation"]],
    "sent": lambda r: r["sent"],
    "method": lambda r: r["method"],
    "images": lambda r: sum(r["images"]),
}

VERDICTS = Table(
    lambda records: [r for r in records if r["unique"] is not None],
    {
        **_CELL,
        "reconstructed": lambda r: sum(r["successes"]),
        "called unique": lambda r: sum(r["unique"]),
        "of these wrong": lambda r: sum(r["false"]),
        "reconstructed, not called unique": lambda r: sum(r["missed"]),
    },
)
"""One row per cell of a method that has a verdict."""

IMAGE_QUALITY = Table(
    lambda records: [r for r in records if r["refusal"] is None],
    {
        **_CELL,
        "PSNR median": lambda r: f"{r['psnr_median']:.0f}",
        "worst": lambda r: f"{r['psnr_worst']:.0f}",
        "gain median": lambda r: f"{r['gain_median']:.0f}",
        "SSIM median": lambda r: f"{r['ssim_median']:.3f}",
        "failed by": lambda r: (
            ", ".join(f"{name} {count}" for name, count in r["reasons"].items()) or MISSING
        ),
    },
)
"""One row per cell that was measured. PSNR and gain are in decibels."""

# Defences: the records of `rconv.lab.protection`

DEFENCE_NAMES = {
    "none": "none",
    "noise": "noise ν",
    "clip": "clipping and noise σ",
    "prune": "pruned share",
    "round": "rounded to",
}


@dataclass(frozen=True)
class Defended:
    """All attacks on one setting of a defence by one attacker.

    Parameters
    ----------
    defence, attacker : str
        As in the records.
    strength : float or str
        As in the records.
    records : list of dict
        One per image and draw of the noise.
    """

    defence: str
    strength: float | str
    attacker: str
    records: list[Record]

    def median(self, quality: str) -> Median:
        """Median of the images' medians over the noise, with its interval over the images."""
        values = [value(r[quality], -inf) for r in self.records]
        return clustered_median(values, [r["index"] for r in self.records])

    def best(self, quality: str) -> float:
        """That of the image that came out best, in its luckiest draw."""
        return max(value(r[quality], -inf) for r in self.records)

    @property
    def exact(self) -> int:
        """Number of records with a mean squared error below `SUCCESS`."""
        return won(self.records)


def by_defence(records: Iterable[Record]) -> list[Defended]:
    """The attacks among the records, by defence, strength and attacker, in their order."""
    attacks = (r for r in records if r["kind"] == "attack")
    found = grouped(attacks, lambda r: (r["defence"], r["strength"], r["attacker"]))
    return [Defended(*key, group) for key, group in found.items()]


def first_without(found: Iterable[Defended], bar: float, *, best: bool) -> float | None:
    """Smallest strength of those tried at which the gain over a flat image falls below a bar.

    The attacker who gets most decides. `best` asks about the best image instead of the median.
    Returns None if the image survives every strength.
    """
    reached: dict[float, float] = {}
    for g in found:
        gain = g.best("gain") if best else g.median("gain").value
        reached[g.strength] = max(gain, reached.get(g.strength, gain))
    return min((s for s, gain in reached.items() if gain < bar), default=None)


def _strength(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _over_images(quality: str, spec: str) -> Callable[[Defended], str]:
    """A column of medians, with the interval where there are images enough for one."""

    def cell(g: Defended) -> str:
        found = g.median(quality)
        if found.level < MEDIAN_LEVEL:
            return format(found.value, spec)
        return f"{found.value:{spec}} ({found.low:{spec}} to {found.high:{spec}})"

    return cell


DEFENCES = Table(
    lambda found: found,
    {
        "defence": lambda g: DEFENCE_NAMES[g.defence],
        "strength": lambda g: _strength(g.strength),
        "attacker": lambda g: "paper's constraints" if g.attacker == "paper" else g.attacker,
        "gradients": lambda g: len(g.records),
        "PSNR (dB): median": _over_images("psnr", ".0f"),
        "best PSNR": lambda g: f"{g.best('psnr'):.0f}",
        "gain (dB): median": _over_images("gain", ".0f"),
        "best gain": lambda g: f"{g.best('gain'):.0f}",
        "SSIM: median": _over_images("ssim", ".2f"),
        "best SSIM": lambda g: f"{g.best('ssim'):.2f}",
        "exact": lambda g: f"{g.exact} of {len(g.records)}",
    },
)
"""One row per group of `by_defence`; exact counts mean squared errors below `SUCCESS`."""


def _percent(summary: Callable[[list[float]], float]) -> Callable[[Sequence[Record]], str]:
    return lambda group: f"{100 * summary([r['accuracy'] for r in group]):.0f}"


ACCURACIES = Table(
    lambda records: grouped(
        (r for r in records if r["kind"] == "training"), lambda r: (r["defence"], r["strength"])
    ).values(),
    {
        "defence": lambda group: DEFENCE_NAMES[group[0]["defence"]],
        "strength": lambda group: (
            "" if group[0]["defence"] == "none" else _strength(group[0]["strength"])
        ),
        "ε of the training": lambda group: (
            "" if group[0]["epsilon"] is None else f"{group[0]['epsilon']:.2g}"
        ),
        "seeds": len,
        "accuracy (%): mean": _percent(statistics.mean),
        "lowest": _percent(min),
        "highest": _percent(max),
    },
)
"""One row per defence and strength: what the trained network has learnt, over the seeds."""

# Published networks, and published figures beside ours


def rough(number: float) -> str:
    """A positive number with one digit that counts: rounding errors are known by their size."""
    return f"{float(f'{number:.1g}'):,.0f}"


def network_row(name: str, channels: int = 3, classes: int = 10) -> tuple:
    """What an architecture is made of; see `NETWORK_HEADER`."""
    group = ARCHITECTURES[name]
    head = build(name, channels, classes).fc
    return (
        f"`{name}`",
        ", ".join(map(str, group.filters)),
        _neighbours(f"{k}×{k} s{stride} p{pad}" for k, stride, pad in group.shapes),
        _neighbours("chosen" if kind == CHOSEN else kind for kind in group.activations),
        f"{head.in_features} → {head.out_features}",
        "yes" if group.bias else "no",
        "uniform in [-0.5, 0.5]" if group.initialisation == "uniform" else "PyTorch's",
    )


NETWORK_HEADER = (
    *("network", "filters", "kernel, stride s, padding p", "activations"),
    *("head", "biases", "initialisation"),
)


def _neighbours(names: Iterable[str]) -> str:
    """Neighbours that are equal, once, with their number."""
    groups = ((name, len(list(same))) for name, same in groupby(names))
    return ", ".join(name if count == 1 else f"{name} ({count}×)" for name, count in groups)


def _row_by_row(pair: tuple[Cell, Judgement]) -> str:
    error = pair[1].row_by_row
    return MISSING if error is None else f"{error:.2e}"


JUDGEMENTS = Table(
    lambda pairs: pairs,
    {
        "notebook": lambda pair: pair[0].notebook,
        "MSE published": lambda pair: f"{pair[0].mse:.2e}",
        "row by row": _row_by_row,
        "`rconv`": lambda pair: f"{pair[1].ours:.2e}",
        "times smaller": lambda pair: rough(pair[1].factor),
        "PSNR published (peak 255)": lambda pair: decibel(pair[0].psnr),
        "PSNR here (peak 255)": lambda pair: decibel(pair[1].psnr_255),
        "PSNR here (peak 1)": lambda pair: decibel(pair[1].psnr),
    },
)
"""One row per published image and its judgement."""

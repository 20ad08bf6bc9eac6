"""What the records of `rconv.lab.protection` say, as rows for a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from rconv.lab.intervals import MEDIAN_LEVEL, Median, clustered_median
from rconv.lab.records import SUCCESS, Record

HEADER = (
    "defence",
    "strength",
    "attacker",
    "gradients",
    "PSNR (dB): median",
    "best",
    "gain (dB): median",
    "best",
    "SSIM: median",
    "best",
    "exact",
)
"""Exact counts mean squared errors below `rconv.lab.records.SUCCESS`."""

ATTACKERS = {
    "paper": "paper's constraints",
    "auto": "auto",
    "hybrid": "hybrid",
    "masked": "masked",
}
NAMES = {
    "none": "none",
    "noise": "noise ν",
    "clip": "clipping and noise σ",
    "prune": "pruned share",
    "round": "rounded to",
}


@dataclass(frozen=True)
class Group:
    """All attacks on one setting of a defence by one attacker.

    Parameters
    ----------
    defence, attacker : str
        As in the records.
    strength : float or str
        As in the records.
    records : tuple of dict
        One per image and draw of the noise.
    """

    defence: str
    strength: float | str
    attacker: str
    records: tuple[Record, ...]

    def median(self, quality: str) -> Median:
        """Median of the images' medians over the noise, with its interval over the images."""
        values = [_worst(r[quality]) for r in self.records]
        return clustered_median(values, [r["index"] for r in self.records])

    def best(self, quality: str) -> float:
        """That of the image that came out best, in its luckiest draw."""
        return max(_worst(r[quality]) for r in self.records)

    @property
    def exact(self) -> int:
        """Number of records with a mean squared error below `SUCCESS`."""
        return sum(r["mse"] is not None and r["mse"] < SUCCESS for r in self.records)


def groups(records: Iterable[Record]) -> list[Group]:
    """The attacks among the records, by defence, strength and attacker, in their order."""
    found: dict[tuple, list[Record]] = {}
    for r in records:
        if r["kind"] == "attack":
            found.setdefault((r["defence"], r["strength"], r["attacker"]), []).append(r)
    return [Group(*key, tuple(own)) for key, own in found.items()]


def rows(found: Sequence[Group]) -> list[tuple]:
    """One row per group; see `HEADER`."""
    return [
        (
            NAMES[g.defence],
            strength(g.strength),
            ATTACKERS[g.attacker],
            len(g.records),
            _interval(g.median("psnr"), ".0f"),
            f"{g.best('psnr'):.0f}",
            _interval(g.median("gain"), ".0f"),
            f"{g.best('gain'):.0f}",
            _interval(g.median("ssim"), ".2f"),
            f"{g.best('ssim'):.2f}",
            f"{g.exact} of {len(g.records)}",
        )
        for g in found
    ]


def accuracy_rows(records: Iterable[Record]) -> list[tuple]:
    """Defence, strength, ε of the training, mean accuracy over the seeds, lowest, highest."""
    found: dict[tuple, list[Record]] = {}
    for r in records:
        if r["kind"] == "training":
            found.setdefault((r["defence"], r["strength"]), []).append(r)
    rows = []
    for (defence, size), own in found.items():
        epsilon = own[0]["epsilon"]
        values = [r["accuracy"] for r in own]
        rows.append(
            (
                NAMES[defence],
                "" if defence == "none" else strength(size),
                "" if epsilon is None else f"{epsilon:.2g}",
                len(values),
                *(f"{100 * f(values):.0f}" for f in (mean, min, max)),
            )
        )
    return rows


def first_without(found: Iterable[Group], bar: float, *, best: bool) -> float | None:
    """Smallest strength of those tried at which the gain over a flat image falls below a bar.

    Parameters
    ----------
    found : iterable of Group
        Of one defence; all attackers count, and the one who gets most decides.
    bar : float
        Gain in dB.
    best : bool
        Ask the best image, instead of the median one.

    Returns
    -------
    float or None
        None if the image survives every strength.
    """
    reached: dict[float, float] = {}
    for g in found:
        gain = g.best("gain") if best else g.median("gain").value
        reached[g.strength] = max(gain, reached.get(g.strength, gain))
    return min((s for s, gain in reached.items() if gain < bar), default=None)


def strength(value: float | str) -> str:
    """A strength as a table shows it."""
    return value if isinstance(value, str) else f"{value:g}"


def _worst(value: float | None) -> float:
    return float("-inf") if value is None else value


def _interval(found: Median, spec: str) -> str:
    """The median, with its interval where there are images enough for one."""
    if found.level < MEDIAN_LEVEL:
        return format(found.value, spec)
    return f"{found.value:{spec}} ({found.low:{spec}} to {found.high:{spec}})"

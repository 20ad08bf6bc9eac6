"""Cells of the table of successes: many attacks in one record, counted seed by seed."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from rconv.lab.intervals import rate_interval
from rconv.lab.records import SUCCESS, Record, open_directions

NOISE = "noise"
"""Why an image failed although every layer had full rank."""


def cell(settings: Record, by_seed: Sequence[Sequence[Record]]) -> Record:
    """One cell of the table.

    Parameters
    ----------
    settings : dict
        What the cell is of.
    by_seed : sequence
        Axis (seed), of records per image as `rconv.lab.success.judged` makes them.

    Returns
    -------
    dict
        JSON values: the settings, and

        - "images", "successes": lists by seed;
        - "unique", "false", "missed": the same of the verdict: so many images called unique; of
          these wrong; and reconstructed without being called unique. None where the method has no
          verdict;
        - "psnr_median", "psnr_worst", "ssim_median", "gain_median": over all images, one that is
          not finite counting as the worst; where an error is 0, as 400 dB;
        - "reasons": why images failed, with counts;
        - "refusal": why the method does not take the network, or None. Then "images" are 0.
    """
    every = [record for records in by_seed for record in records]
    refusal = next((r["refusal"] for r in every if "refusal" in r), None)
    if refusal is not None:
        by_seed, every = [[] for _ in by_seed], []

    def count(test: Callable[[Record], bool]) -> list[int]:
        return [sum(map(test, records)) for records in by_seed]

    told = bool(every) and "unique" in every[0]
    return {
        **settings,
        "images": count(lambda r: True),
        "successes": count(succeeded),
        "unique": count(lambda r: r["unique"]) if told else None,
        "false": count(lambda r: r["false"]) if told else None,
        "missed": count(lambda r: succeeded(r) and not r["unique"]) if told else None,
        **(_quality(every) if every else {}),
        "reasons": dict(Counter(reason(r) for r in every if not succeeded(r)).most_common()),
        "refusal": refusal,
    }


def succeeded(record: Record) -> bool:
    """Whether the image counts as reconstructed."""
    return record["mse"] is not None and record["mse"] < SUCCESS


def reason(record: Record) -> str:
    """Why an image failed: the first layer, from the head down, that is short of rank, or noise."""
    for layer in record.get("layers", []):
        if open_directions(layer) > 0:
            return layer["name"]
    return NOISE


def rate(record: Record) -> tuple[float, float, float]:
    """Share of successes of a cell, and its interval over the seeds."""
    low, high = rate_interval(record["successes"], record["images"])
    return sum(record["successes"]) / sum(record["images"]), low, high


def _quality(records: Sequence[Record]) -> Record:
    psnr = list(_decibels(records, "psnr"))
    return {
        "psnr_median": median(psnr),
        "psnr_worst": min(psnr),
        "ssim_median": median(r["ssim"] if r["ssim"] is not None else -1.0 for r in records),
        "gain_median": median(_decibels(records, "gain")),
    }


def _decibels(records: Sequence[Record], key: str) -> Iterator[float]:
    """Values of a measure in decibels, the infinite ones cut off."""
    for record in records:
        if record[key] is not None:
            yield record[key]
        else:
            yield 400.0 if record["mse"] == 0 else -400.0

"""A comparison over seeds: which images each model's clients hold, and how the prior is chosen."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rconv.lab.comparison import Comparison, compare
from rconv.lab.entrants import AUTO, INVERTING, OPTIMISED, PAPER, RGAP, SMOOTH
from rconv.lab.records import Record

FULL, ONLY_FEW = (AUTO, RGAP), (PAPER,)
"""The two closed forms that stack both kinds of constraints meet on every image. The paper's own
choice of constraints is slow only where it fails, and joins the optimisations on their images."""

VARIATIONS = (0.2, 0.1, 0.01, 0.001)
"""Weights of the total variation that are tried: the framework's, the paper's code's, and less."""


def spread(indices: Sequence[int], seeds: Sequence[int], each: int, count: int) -> dict:
    """Images of each seed: `count` of them from its own place on, round and round.

    Seed number k begins with image k · `each`, so that the seeds share the images out among them
    where the count is `each`, and all have all of them where it is their number.

    Parameters
    ----------
    indices : sequence of int
        The images.
    seeds : sequence of int
        Of the models.
    each, count : int
        Distance from seed to seed, and images of each.

    Returns
    -------
    dict of int to list of int
        Seed → its images, none twice.

    Raises
    ------
    ValueError
        If a seed is to have more images than there are, or none.
    """
    if not 0 < each <= count <= len(indices):
        raise ValueError(
            f"{len(indices)} images cannot give each seed {count} of them, {each} of its own"
        )
    return {
        seed: [indices[(k * each + j) % len(indices)] for j in range(count)]
        for k, seed in enumerate(seeds)
    }


def study(
    dataset: str,
    indices: Sequence[int],
    architecture: str,
    activation: str | None = None,
    *,
    seeds: Sequence[int],
    each: int,
    count: int,
    dtypes: Sequence[str] = ("float64", "float32"),
    settings: Mapping[str, Record] | None = None,
    **options: Any,
) -> list[Comparison]:
    """Compare over several models: two closed forms on more images than the others can afford.

    Parameters
    ----------
    dataset, indices, architecture, activation, settings
        As `compare` takes them; remaining options go there, too.
    seeds : sequence of int
        Of the models.
    each : int
        Images of each model that every attack gets, in the last dtype.
    count : int
        Images of each model that R-CONV (auto) and R-GAP get, in every dtype; these among them.
    dtypes : sequence of str
        In which the clients compute; the last one is that of the published optimisations, float32.

    Returns
    -------
    list of Comparison
        Per seed: R-CONV (auto) and R-GAP dtype by dtype, R-CONV (paper) likewise, then the
        optimisations.
    """
    many, few = (spread(indices, seeds, each, number) for number in (count, each))
    runs = [*((many, dtype, FULL) for dtype in dtypes)]
    runs += [*((few, dtype, ONLY_FEW) for dtype in dtypes), (few, dtypes[-1], OPTIMISED)]
    model = {"architecture": architecture, "activation": activation}
    own = {**model, "settings": settings, **options}
    return [
        compare(dataset, images[seed], seed=seed, dtype=dtype, methods=methods, **own)
        for seed in seeds
        for images, dtype, methods in runs
    ]


def try_variations(
    dataset: str,
    indices: Sequence[int],
    architecture: str,
    activation: str | None = None,
    *,
    iterations: int = SMOOTH["iterations"],
    **options: Any,
) -> list[Record]:
    """Inverting Gradients with each of `VARIATIONS`, on images that nothing is tested on.

    Parameters
    ----------
    dataset, indices, architecture, activation
        As `compare` takes them; remaining options, such as the seed, go there, too.
    iterations : int
        Of Adam.

    Returns
    -------
    list of Record
        Per weight and image, as `compare` has them.
    """
    found = []
    for weight in VARIATIONS:
        settings = {INVERTING: {"iterations": iterations, "total_variation": weight}}
        found += compare(
            dataset,
            indices,
            architecture,
            activation,
            methods=[INVERTING],
            settings=settings,
            **options,
        ).records
    return found


def variation_medians(records: Sequence[Record]) -> dict[float, float]:
    """Weight of the total variation → median PSNR of its records, in dB."""
    weights = dict.fromkeys(r["settings"]["total_variation"] for r in records)
    return {
        weight: median(r["psnr"] for r in records if r["settings"]["total_variation"] == weight)
        for weight in weights
    }

"""How often the attack succeeds: initialisation and training × what is sent × method.

Every rate is over seeds and images, so that it does not hang on one lucky network. The records
are the cells of a table: many attacks in one record, counted seed by seed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from statistics import median

from torch import nn

from rconv.baselines import rgap
from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.channels import SENT, Sent, observe
from rconv.lab.experiment import shared_model
from rconv.lab.intervals import rate_interval
from rconv.lab.records import Record, open_directions, score, won
from rconv.lab.training import train
from rconv.model.read import UnsupportedModelError

INITIAL_WEIGHTS = ("uniform", "default", "trained")
"""The paper's ±0.5, PyTorch's own, and PyTorch's own after `rconv.lab.training.train`."""

VARIANTS = ("paper", "R-GAP", "equations", "auto")
"""R-CONV with the paper's constraints, R-GAP, R-CONV with the equations it chooses, and with signs
and a prior where these are short of rank."""

NOISE = "noise"
"""Why an image failed although every layer had full rank."""

Samples = Mapping[str, Sequence[Sequence[int]]]
"""Method → for each of `SENT`, (seeds, images per seed); (0, 0) leaves a cell out."""


def success_rates(
    dataset: str = datasets.DEFAULT,
    architecture: str = "lenet_main",
    activation: str | None = None,
    *,
    samples: Samples,
    training: int = 100,
) -> list[Record]:
    """Attack the first images of a dataset through networks of several seeds and initialisations.

    Seeds are 0, 1, and so on; `samples` says how many, and how many images. The networks are
    trained on the first `training` images; the attacked ones are among them, like those of a client
    that comes back to a model that it has helped to train.
    """
    counts = _counts_per_cell(samples)
    truth = datasets.load(dataset, range(max(n for _, n in counts.values())))
    pool = datasets.load(dataset, range(training))
    names = (dataset, architecture, activation)
    seeds = range(max(seeds for seeds, _ in counts.values()))
    found: dict[tuple[str, str, str], list[list[Record]]] = {}
    accuracies: dict[str, list[float]] = {}
    for start, seed in product(INITIAL_WEIGHTS, seeds):
        model = network(*names, start, seed)
        if start == "trained":
            model, accuracy = train(model, pool, seed=seed)
            accuracies.setdefault(start, []).append(accuracy)
        seen = observe(model, architecture, truth)
        for (method, sent), (enough, images) in counts.items():
            if seed < enough:
                answers = judged(method, seen[sent].first(images), truth)
                found.setdefault((start, sent, method), []).append(answers)
    shared = {
        "dataset": dataset,
        "architecture": architecture,
        "activation": architectures.activation_names(architecture, activation)[-1],
    }
    records = []
    for (start, sent, method), answers in found.items():
        which = {"initialisation": start, "sent": sent, "method": method}
        records.append(cell({**shared, **which, "accuracy": accuracies.get(start)}, answers))
    return records


def _counts_per_cell(samples: Samples) -> dict[tuple[str, str], tuple[int, int]]:
    """(method, sent) → (seeds, images per seed), without the cells that are left out."""
    unknown = set(samples) - set(VARIANTS)
    if unknown:
        raise ValueError(f"unknown method {min(unknown)!r}: use one of {', '.join(VARIANTS)}")
    counts = {}
    for method in samples:
        if len(samples[method]) != len(SENT):
            raise ValueError(
                f"{method}: {len(samples[method])} counts for {len(SENT)} ways of sending; give "
                "(seeds, images) for each, (0, 0) to leave one out"
            )
        for sent, (seeds, images) in zip(SENT, samples[method], strict=True):
            if min(seeds, images) > 0:
                counts[method, sent] = (seeds, images)
    if not counts:
        raise ValueError("no cell of the table has a seed and an image: nothing would be measured")
    return counts


def network(
    dataset: str, architecture: str, activation: str | None, start: str, seed: int
) -> nn.Sequential:
    """The float64 network of a seed and one of `INITIAL_WEIGHTS`, before any training."""
    initialisation = "uniform" if start == "uniform" else "default"
    return shared_model(dataset, architecture, activation, seed=seed, initialisation=initialisation)


def judged(method: str, seen: Sent, truth: datasets.Images) -> list[Record]:
    """Attack N clients, one image each, by one of `VARIANTS`, and score the answers.

    The truth has at least N images, those of the clients first. Returns one record per image, as
    `rconv.lab.records.score` has it; of R-GAP, which has no verdict, the quality alone; "refusal"
    where it refuses the network.
    """
    truth = truth.select(slice(len(next(iter(seen.gradients.values())))))
    shape = tuple(truth.images.shape[1:])
    if method == "R-GAP":
        try:
            found = rgap.attack(seen.model, seen.gradients, shape).images.detach().double()
        except UnsupportedModelError as error:
            return [{"refusal": str(error)}]
    elif method == "equations":
        found = seen.attacked(shape, signs=False)
    else:
        found = seen.attacked(shape, method)
    return score(found, truth, {})


def cell(settings: Record, by_seed: Sequence[Sequence[Record]]) -> Record:
    """One cell of the table, from records of `judged`, axes (seed, image), as JSON values:

    - the settings;
    - "images", "successes": lists by seed;
    - "unique", "false", "missed": the same of the verdict: so many images called unique; of these
      wrong; and reconstructed without being called unique. None where the method has no verdict;
    - "psnr_median", "psnr_worst", "ssim_median", "gain_median": over all images, one that is not
      finite counting as the worst; where an error is 0, as 400 dB;
    - "reasons": why images failed, with counts;
    - "refusal": why the method does not take the network, or None. Then "images" are 0.
    """
    every = [record for records in by_seed for record in records]
    refusal = next((r["refusal"] for r in every if "refusal" in r), None)
    if refusal is not None:
        by_seed, every = [[] for _ in by_seed], []

    def count(test: Callable[[Record], bool]) -> list[int]:
        return [sum(map(test, records)) for records in by_seed]

    judged_here = bool(every) and "unique" in every[0]
    failed = [record.get("layers", []) for record in every if not won([record])]
    # The first layer, from the head down, that is short of rank, or noise.
    short = ((layer["name"] for layer in layers if open_directions(layer) > 0) for layers in failed)
    reasons = [next(names, NOISE) for names in short]
    return {
        **settings,
        "images": count(lambda r: True),
        "successes": [won(records) for records in by_seed],
        "unique": count(lambda r: r["unique"]) if judged_here else None,
        "false": count(lambda r: r["false"]) if judged_here else None,
        "missed": count(lambda r: won([r]) and not r["unique"]) if judged_here else None,
        **(_quality(every) if every else {}),
        "reasons": dict(Counter(reasons).most_common()),
        "refusal": refusal,
    }


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

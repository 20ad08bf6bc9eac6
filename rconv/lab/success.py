"""How often the attack succeeds: initialisation and training × what is sent × method.

Every rate is over seeds and images, so that it does not hang on one lucky network. The records
are the cells of a table, see `rconv.lab.cells`.
"""

from collections.abc import Mapping, Sequence

from torch import nn
from tqdm import tqdm

from rconv.baselines import rgap
from rconv.data import datasets
from rconv.lab import architectures, hunt, metrics
from rconv.lab.cells import cell
from rconv.lab.experiment import shared_model
from rconv.lab.records import Record, finite, make_records
from rconv.lab.sent import SENT, Observation, observe, reconstruct
from rconv.lab.training import train
from rconv.model.read import UnsupportedModelError

INITIALISATIONS = ("uniform", "default", "trained")
"""The paper's ±0.5, PyTorch's own, and PyTorch's own after `rconv.lab.training.train`."""

METHODS = ("paper", "R-GAP", "equations", "auto")
"""R-CONV with the paper's constraints, R-GAP, R-CONV with the equations it chooses, and with signs
and a prior where these are short of rank."""

Samples = Mapping[str, Sequence[Sequence[int]]]
"""Method → for each of `SENT`, (seeds, images per seed); (0, 0) leaves a cell out."""


def sweep(
    dataset: str = datasets.DEFAULT,
    architecture: str = "lenet_main",
    activation: str | None = None,
    *,
    samples: Samples,
    training: int = 100,
    data_dir: str | None = None,
    progress: bool = False,
) -> list[Record]:
    """Attack the first images of a dataset through networks of several seeds and initialisations.

    Parameters
    ----------
    dataset, data_dir
        As `rconv.data.datasets.load` takes them.
    architecture, activation
        As `rconv.lab.architectures.build` takes them. Seeds are 0, 1, and so on.
    samples : mapping
        Method of `METHODS` → for each of `SENT`, how many seeds, and images per seed.
    training : int
        The networks are trained on the first so many images; the attacked ones are among them,
        like those of a client that comes back to a model that it has helped to train.
    progress : bool
        Show a progress bar over the networks.

    Returns
    -------
    list of dict
        One per cell, as `rconv.lab.cells.cell` makes them.

    Raises
    ------
    ValueError
        Samples that do not fit the table, or a setting that does not exist.
    """
    counts = counts_per_cell(samples)
    truth = datasets.load(dataset, range(max(n for _, n in counts.values())), data_dir=data_dir)
    pool = datasets.load(dataset, range(training), data_dir=data_dir)
    names = (dataset, architecture, activation)
    seeds = range(max(seeds for seeds, _ in counts.values()))
    order = [(start, seed) for start in INITIALISATIONS for seed in seeds]
    found: dict[tuple[str, str, str], list[list[Record]]] = {}
    accuracies: dict[str, list[float]] = {}
    for start, seed in tqdm(order, disable=not progress, unit="network"):
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
        own = {"initialisation": start, "sent": sent, "method": method}
        records.append(cell({**shared, **own, "accuracy": accuracies.get(start)}, answers))
    return records


def counts_per_cell(samples: Samples) -> dict[tuple[str, str], tuple[int, int]]:
    """(method, sent) → (seeds, images per seed), without the cells that are left out.

    Raises
    ------
    ValueError
        An unknown method, a row of another length than `SENT`, or nothing to do.
    """
    unknown = set(samples) - set(METHODS)
    if unknown:
        raise ValueError(f"unknown method {min(unknown)!r}: use one of {', '.join(METHODS)}")
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
    dataset: str, architecture: str, activation: str | None, initialisation: str, seed: int
) -> nn.Sequential:
    """The float64 network of a seed, before any training."""
    start = "uniform" if initialisation == "uniform" else "default"
    return shared_model(dataset, architecture, activation, seed=seed, initialisation=start)


def judged(method: str, seen: Observation, truth: datasets.Images) -> list[Record]:
    """Attack the clients that are seen, one image each, and compare with the truth.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    seen : Observation
        Of N clients.
    truth : Images
        At least N images, those of the clients first, which only the judgement sees.

    Returns
    -------
    list of dict
        One per image: `rconv.lab.records.make_records` with "false", whether the verdict is; of
        R-GAP, which has none, the quality alone; "refusal" where it refuses the network.
    """
    count = len(next(iter(seen.gradients.values())))
    own = datasets.Images(*(x[:count] for x in (truth.images, truth.labels, truth.indices)), "")
    shape = tuple(own.images.shape[1:])
    if method == "R-GAP":
        try:
            images = rgap.attack(seen.model, seen.gradients, shape).images.detach().double()
        except UnsupportedModelError as error:
            return [{"refusal": str(error)}]
        quality = metrics.quality(images, own.images)
        return [{key: finite(v[n]) for key, v in quality.items()} for n in range(count)]
    constraints, signs = ("auto", False) if method == "equations" else (method, True)
    found = reconstruct(seen, shape, constraints, signs=signs)
    false = [record["false"] for record in hunt.judge(found, own.images, {})]
    records = make_records(found, {}, own)
    return [{**record, "false": wrong} for record, wrong in zip(records, false, strict=True)]

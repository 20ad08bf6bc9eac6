"""How small can a layer get? Success against the number of filters, beside the generic rank."""

from collections.abc import Iterator, Sequence

from torch import nn
from tqdm import tqdm

from rconv.audit import LayerAudit, audit, filters_needed
from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.experiment import model_settings, run, shared_model
from rconv.lab.records import Record, won
from rconv.model.read import read

SHARES = (1 / 2, 3 / 4, 1, 5 / 4)
"""Of the filters that a layer needs: where `widths` looks, besides one filter fewer and more."""


def widths(needed: int, usual: int) -> list[int]:
    """Numbers of filters around the needed one, and the usual one, ascending."""
    around = {round(share * needed) for share in SHARES} | {needed - 1, usual}
    return sorted({max(1, number) for number in around})


def sweep(
    dataset: str = datasets.DEFAULT,
    indices: Sequence[int] = (0,),
    architecture: str = "lenet_main",
    activation: str | None = None,
    *,
    seed: int = architectures.SEED,
    data_dir: str | None = None,
    progress: bool = False,
) -> list[Record]:
    """Vary the filters of one layer at a time, and attack with the paper's constraints and ours.

    The other layers keep the architecture's own numbers. Where the first activation has no
    inverse, "gradient" stands for the paper's constraints in every layer.

    Parameters
    ----------
    dataset, indices, architecture, activation, seed, data_dir
        As `rconv.lab.experiment.run` takes them; clients compute in float64.
    progress : bool
        Show a progress bar over the settings.

    Returns
    -------
    list of dict
        One per layer, number of filters and kind of constraints: its settings; "width", the
        filters of this layer, "usual", those of the architecture, and "needed", those with which
        the paper's equations have full generic rank there; "images", "successes", "unique";
        "unknowns" and "rank" of the layer (generic, from the audit); and "predicted", whether the
        audit finds every layer at full rank.

    Raises
    ------
    ValueError
        If a setting does not fit, with the reason.
    """
    network = (dataset, architecture, activation)
    model = shared_model(*network, seed=seed)
    shape = (datasets.CHANNELS[dataset], 32, 32)
    kinds = (architectures.published_constraints(architecture), "auto")
    shared = {"dataset": dataset, **model_settings(architecture, activation, seed=seed)}
    usual = architectures.ARCHITECTURES[architecture].filters
    records = []
    settings = list(_settings(usual, model, shape))
    for layer, needed, filters in tqdm(settings, disable=not progress, unit="setting"):
        varied = {"seed": seed, "filters": filters}
        judged = audit(shared_model(*network, **varied), shape)[:0:-1]
        here = {
            "filters": list(filters),
            "width": filters[layer],
            "usual": usual[layer],
            "needed": needed,
        }
        for kind in kinds:
            varied |= {"constraints": kind, "signs": False, "data_dir": data_dir}
            found = run(dataset, indices, architecture, activation, **varied).records
            outcome = {**_counts(found), **_prediction(judged, layer, kind)}
            records.append({**shared, "constraints": kind, **here, **outcome})
    return records


def _counts(found: list[Record]) -> Record:
    """How many images were attacked, reconstructed, and called unique."""
    unique = sum(r["unique"] for r in found)
    return {"images": len(found), "successes": won(found), "unique": unique}


def _prediction(judged: Sequence[LayerAudit], layer: int, kind: str) -> Record:
    """What the audit says of a layer, and of all of them, with this kind of constraints."""
    ranks = [_rank(a, kind, first=a is judged[0]) for a in judged]
    return {
        "layer": judged[layer].name,
        "unknowns": judged[layer].unknowns,
        "rank": ranks[layer],
        "predicted": all(r == a.unknowns for r, a in zip(ranks, judged, strict=True)),
    }


def _settings(
    usual: tuple[int, ...], model: nn.Sequential, shape: tuple[int, int, int]
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Layer, filters that it needs, and the filters of all layers with this one varied."""
    for layer, stage in enumerate(read(model, shape).stages):
        g = stage.geometry
        by_weight = layer == 0 and stage.activation.invertible
        needed = -(-g.unknowns // g.positions) if by_weight else filters_needed(g)
        for width in widths(needed, usual[layer]):
            yield layer, needed, (*usual[:layer], width, *usual[layer + 1 :])


def _rank(judged: LayerAudit, kind: str, *, first: bool) -> int:
    """Generic rank of the equations that this kind of constraints uses in this layer."""
    if kind == "auto" and judged.hybrid_rank is not None:
        return judged.hybrid_rank
    if kind == "paper" and first:
        return min(judged.weight_rows, judged.unknowns)
    return judged.gradient_rank

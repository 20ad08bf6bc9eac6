"""Layers with few filters: where equations become too few, and what signs and the prior still show.

`sweep` varies every layer and compares success with the generic rank; `underdetermined` follows one
layer below the filters that it needs.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import product

from torch import nn

from rconv.attack.attack import Attack
from rconv.audit import LayerAudit, audit, filters_needed
from rconv.data import datasets
from rconv.lab import architectures, metrics
from rconv.lab.experiment import client_gradients, model_settings, run, shared_model
from rconv.lab.records import Record, finite, score, won
from rconv.model.read import read
from rconv.observe.observation import Gradients

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
) -> list[Record]:
    """Vary the filters of one layer at a time, and attack with the paper's constraints and ours.

    The other layers keep the architecture's own numbers. Where the first activation has no
    inverse, "gradient" stands for the paper's constraints in every layer.

    Returns
    -------
    list of dict
        One per layer, number of filters and kind of constraints: its settings; "width", the
        filters of this layer, "usual", those of the architecture, and "needed", those with which
        the paper's equations have full generic rank there; "images", "successes", "unique";
        "unknowns" and "rank" of the layer (generic, from the audit); and "predicted", whether the
        audit finds every layer at full rank.
    """
    network = (dataset, architecture, activation)
    model = shared_model(*network, seed=seed)
    shape = (datasets.CHANNELS[dataset], 32, 32)
    kinds = (architectures.published_constraints(architecture), "auto")
    shared = {"dataset": dataset, **model_settings(architecture, activation, seed=seed)}
    usual = architectures.ARCHITECTURES[architecture].filters
    records = []
    for layer, needed, filters in _settings(usual, model, shape):
        varied = {"seed": seed, "filters": filters}
        judged = audit(shared_model(*network, **varied), shape)[:0:-1]
        here = {
            "filters": list(filters),
            "width": filters[layer],
            "usual": usual[layer],
            "needed": needed,
        }
        for kind in kinds:
            varied |= {"constraints": kind, "signs": False}
            found = run(dataset, indices, architecture, activation, **varied).records
            counts = {"images": len(found), "successes": won(found)}
            counts["unique"] = sum(r["unique"] for r in found)
            outcome = {**counts, **_prediction(judged, layer, kind)}
            records.append({**shared, "constraints": kind, **here, **outcome})
    return records


def _settings(
    usual: tuple[int, ...], model: nn.Sequential, shape: tuple[int, int, int]
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Layer, filters that it needs, and the filters of all layers with this one varied."""
    for layer, stage in enumerate(read(model, shape).stages):
        g = stage.geometry
        by_weight = layer == 0 and stage.activation.invertible
        needed = -(-g.unknowns // g.positions) if by_weight else filters_needed(g)
        for width in widths(needed, usual[layer]):
            yield layer, needed, _with_width(usual, layer, width)


def _with_width(usual: tuple[int, ...], layer: int, width: int) -> tuple[int, ...]:
    return (*usual[:layer], width, *usual[layer + 1 :])


def _prediction(judged: Sequence[LayerAudit], layer: int, kind: str) -> Record:
    """What the audit says of a layer, and of all of them, with this kind of constraints."""
    ranks = [_rank(a, kind, first=a is judged[0]) for a in judged]
    return {
        "layer": judged[layer].name,
        "unknowns": judged[layer].unknowns,
        "rank": ranks[layer],
        "predicted": all(r == a.unknowns for r, a in zip(ranks, judged, strict=True)),
    }


def _rank(judged: LayerAudit, kind: str, *, first: bool) -> int:
    """Generic rank of the equations that this kind of constraints uses in this layer."""
    if kind == "auto" and judged.hybrid_rank is not None:
        return judged.hybrid_rank
    if kind == "paper" and first:
        return min(judged.weight_rows, judged.unknowns)
    return judged.gradient_rank


def underdetermined(
    dataset: str = datasets.DEFAULT,
    indices: Sequence[int] = (0,),
    architecture: str = "lenet_all_relu",
    activation: str | None = None,
    *,
    widths: Sequence[int],
    layer: int = 0,
    seeds: Sequence[int] = (architectures.SEED,),
    initialisation: str | None = None,
) -> list[Record]:
    """Attack networks one of whose layers has fewer and fewer filters, in float64.

    `widths` are the filters of the convolution number `layer`, from the image on; the others keep
    those of the architecture. There is one network for each seed and width. Returns one record per
    network and image, as `attacked` makes them, with "width".
    """
    usual = architectures.ARCHITECTURES[architecture].filters
    if not 0 <= layer < len(usual):
        raise ValueError(f"layer {layer} of {len(usual)} convolutions: use 0 to {len(usual) - 1}")
    truth = datasets.load(dataset, indices)
    records: list[Record] = []
    for width, seed in product(widths, seeds):
        filters = _with_width(usual, layer, width)
        options = {"seed": seed, "filters": filters, "initialisation": initialisation}
        model = shared_model(dataset, architecture, activation, **options)
        settings = model_settings(architecture, activation, **options)
        shared = {"dataset": dataset, **settings, "dtype": "float64", "width": width}
        attack = Attack(model, tuple(truth.images.shape[1:]), loss="cross-entropy")
        sent = client_gradients(model, architecture, truth)
        records += [attacked(attack, sent, truth, n, shared) for n in range(len(truth))]
    return records


def attacked(
    attack: Attack, sent: Gradients, truth: datasets.Images, n: int, shared: Record
) -> Record:
    """Attack image n and score the answer.

    The record is that of `rconv.lab.records.score`, with "by_rank", whether equations alone
    determine every layer, and PSNR in dB: "least" of the answer without what the prior chose,
    "flat" of the image's mean grey. "seconds" is CPU time of this process.
    """
    start, one = time.process_time(), slice(n, n + 1)
    found = attack({name: g[one] for name, g in sent.items()})
    seconds = time.process_time() - start
    image = truth.images[one]
    (record,) = score(found, truth.select(one), shared, layers=False)
    quality = {"least": (found.images - found.guess).clamp(0, 1), "flat": metrics.flat(image)}
    return {
        **record,
        "by_rank": all(int(layer.rank) == layer.unknowns for layer in found.layers),
        **{key: finite(metrics.psnr(x, image, data_range=1.0)) for key, x in quality.items()},
        "seconds": seconds,
    }

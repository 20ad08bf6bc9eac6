"""How much of an image survives each defence, and what the defence costs the learner."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.data.datasets import Images
from rconv.lab import architectures, defences
from rconv.lab.defences import DELTA, epsilon_of_release, epsilon_of_training
from rconv.lab.experiment import model_settings
from rconv.lab.masked import masked_attack
from rconv.lab.records import Record, score
from rconv.lab.training import PARTICIPANTS, learn
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, per_sample_gradients

UNEXPLAINED = 1e-2
"""Gradient residual above which an image is no explanation, and the attacker tries again."""

EXPLAINS = 1e-6
"""Residual of the surviving entries up to which a masked reconstruction counts as the image: far
above the rounding of an exact one, 1e-15 to 1e-10, and far below those that fail, 0.1 and more."""

BOUND = 1.0
"""Clipping bound in a training. Adam and noise relative to the bound make its size matter little.
"""

HELD_OUT = 360
"""Test images, the last fifth of Digits: in the order of its publication, other writers' hands."""


@dataclass(frozen=True)
class Defence:
    """What clients do before they send.

    `send` takes the gradients of the clients and a generator, which it draws from if it is
    `random`. The attacker knows of its noise what `noise` says; `epsilon` is that of one release.
    `sum_noise` is the standard deviation of noise that is added to the sum over the clients.
    """

    name: str
    strength: float | str
    send: Callable[[Gradients, torch.Generator], Gradients]
    random: bool = False
    noise: Noise | None = None
    epsilon: float | None = None
    sum_noise: float = 0.0


Strengths = Mapping[str, Sequence[float | str]]
"""Defence → strengths: "noise" of `defences.add_noise`, "clip" (noise multipliers σ, 0 clips only),
"prune" (shares of `defences.prune`), and "round" (dtypes)."""


def _plan(strengths: Strengths, clipping: Callable[[float], Defence]) -> list[Defence]:
    """All defences that are asked for."""
    makers: dict[str, Callable[[Any], Defence]] = {
        "noise": lambda s: Defence(
            "noise", s, lambda g, r: defences.add_noise(g, s, r), True, Noise(relative_std=s)
        ),
        "clip": clipping,
        "prune": lambda s: Defence("prune", s, lambda g, _: defences.prune(g, s)),
        "round": lambda t: Defence(
            "round", t, lambda g, _: defences.round_to(g, getattr(torch, t))
        ),
    }
    return [make(strength) for kind, make in makers.items() for strength in strengths.get(kind, ())]


def protect(
    dataset: str,
    indices: Sequence[int],
    architecture: str,
    filters: Sequence[int],
    strengths: Strengths,
    *,
    masked: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
) -> list[Record]:
    """Attack defended gradients of grey images, by ReLU networks in float64.

    Parameters
    ----------
    strengths : mapping of str to sequence
        Each client clips to half the smallest norm, so that every client clips. The attacker knows
        the size of the noise, and takes the zeros of pruning for measured.
    masked : sequence of float
        Shares of `defences.prune`, against `masked_attack`.
    seeds : sequence of int
        Draws of the noise. What is not random is attacked once.

    Returns
    -------
    list of dict
        One record per attacked gradient: the settings; "attacker", which is the constraints,
        "paper" and "auto" by equations alone (against pruning "hybrid"), or "masked"; the quality
        of the image, clipped to [0, 1] before it is scored; "epsilon" of this one release at
        `DELTA`, None where there is none; "unique", the attacker's verdict, for "masked" whether
        its image explains what survives up to `EXPLAINS`; and for "masked" also "short", by how
        much the rank of each layer's equations is short. "paper" uses the noise that is known.
        "auto" first estimates the noise itself, and where its image does not explain the gradients
        tries again with the known noise, and keeps what explains them better.
    """
    truth = grey(datasets.load(dataset, indices))
    model = architectures.build(architecture, 1, datasets.CLASSES[dataset], "ReLU", filters=filters)
    gradients = per_sample_gradients(model, truth.images, truth.labels)
    settings = model_settings(architecture, "ReLU", filters=filters)
    settings = {"kind": "attack", "dataset": dataset, **settings}
    plan = [
        (defence, seed, _answers)
        for defence in _plan(strengths, _clipping(gradients))
        for seed in (seeds if defence.random else seeds[:1])
    ]
    plan += [(defence, 0, _masked) for defence in _plan({"prune": masked}, _clipping(gradients))]
    records = []
    for defence, seed, answers in plan:
        sent = defence.send(gradients, torch.Generator().manual_seed(seed))
        drawn = {"defence": defence.name, "strength": defence.strength, "noise_seed": seed}
        shared = {**settings, **drawn, "epsilon": defence.epsilon}
        for attacker, images, more in answers(model, sent, defence):
            scored = score(images.clamp(0, 1), truth, {**shared, "attacker": attacker})
            records += [record | entries for record, entries in zip(scored, more, strict=True)]
    return records


def grey(data: Images) -> Images:
    """The same images in grey, one channel: the mean over the channels."""
    return replace(data, images=data.images.mean(dim=1, keepdim=True))


def _clipping(gradients: Gradients) -> Callable[[float], Defence]:
    """Makes the Gaussian mechanism with a multiplier."""
    bound = float(defences.norms(gradients).min()) / 2

    def clipping(sigma: float) -> Defence:
        def send(g: Gradients, generator: torch.Generator) -> Gradients:
            return defences.clip_and_noise(g, sigma, bound, generator)

        if not sigma:
            return Defence("clip", 0, send)
        noise = Noise(std=dict.fromkeys(gradients, sigma * bound))
        return Defence("clip", sigma, send, True, noise, epsilon_of_release(sigma, DELTA))

    return clipping


Answer = tuple[str, Tensor, list[Record]]
"""The attacker, images (N, C, H, W), and further entries of their N records."""


def _answers(model: nn.Sequential, sent: Gradients, defence: Defence) -> Iterator[Answer]:
    """Those of the attackers who take every entry for measured."""
    shape = (1, 32, 32)
    result = Attack(model, shape, constraints="paper")(sent, noise=defence.noise)
    yield "paper", result.images, [{"unique": verdict} for verdict in result.unique.tolist()]
    kind = "hybrid" if defence.name == "prune" else "auto"
    attack = Attack(model, shape, constraints=kind, signs=False)
    result = attack(sent)
    images, unique, residual = result.images, result.unique, result.gradient_residual
    unexplained = (residual > UNEXPLAINED).nonzero()[:, 0]
    if defence.noise is not None and len(unexplained):
        part = {name: g[unexplained] for name, g in sent.items()}
        again = attack(part, noise=defence.noise)
        better = again.gradient_residual < residual[unexplained]
        images[unexplained[better]] = again.images[better]
        unique[unexplained[better]] = again.unique[better]
    yield kind, images, [{"unique": verdict} for verdict in unique.tolist()]


def _masked(model: nn.Sequential, sent: Gradients, defence: Defence) -> Iterator[Answer]:
    """That of the attacker who takes zeros for missing."""
    found = masked_attack(model, (1, 32, 32), sent)
    short = torch.stack([layer.unknowns - layer.rank for layer in found.layers], dim=1)
    explains = (found.gradient_residual < EXPLAINS).tolist()
    more = zip(explains, short.tolist(), strict=True)
    yield "masked", found.images, [{"unique": explained, "short": left} for explained, left in more]


def accuracies(
    architecture: str,
    filters: Sequence[int],
    strengths: Strengths,
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 120,
) -> list[Record]:
    """Train on Digits under each defence, from PyTorch's initialisation, and test.

    Each client defends its gradient. With "clip" it clips to `BOUND`, and the sum over the clients
    gets the noise. To the model it is the same whether a trusted party adds this noise or each of
    `PARTICIPANTS` clients a share of σ / √PARTICIPANTS. Seeds are those of the initialisation, the
    clients and the noise.

    Returns
    -------
    list of dict
        One record per defence, strength and seed: the settings, "accuracy" on `HELD_OUT` images,
        and for "clip" what it buys at `DELTA`: "epsilon" of the whole training, for those who see
        the sums, and "epsilon_release" of one step of one client, for a server that sees each
        client's share of the noise.
    """
    data = datasets.load("Digits")
    train, test = (data.select(part) for part in (slice(0, -HELD_OUT), slice(-HELD_OUT, None)))

    def clipping(sigma: float) -> Defence:
        return Defence("clip", sigma, lambda g, _: defences.clip(g, BOUND), sum_noise=sigma * BOUND)

    plan = [Defence("none", 0.0, lambda g, _: g), *_plan(strengths, clipping)]
    options, records = {"filters": filters, "initialisation": "default"}, []
    for defence in plan:
        bought = {"epsilon": None, "epsilon_release": None}
        if defence.sum_noise:
            sigma, share = defence.strength, PARTICIPANTS / len(train)
            bought["epsilon"] = epsilon_of_training(sigma, DELTA, share, steps)
            bought["epsilon_release"] = epsilon_of_release(sigma / PARTICIPANTS**0.5, DELTA)
        for seed in seeds:
            model = architectures.build(architecture, 1, 10, "ReLU", seed=seed, **options).float()
            learn(model, train, defence.send, sum_noise=defence.sum_noise, steps=steps, seed=seed)
            with torch.no_grad():
                right: Tensor = model(test.images.float()).argmax(dim=1) == test.labels
            settings = model_settings(architecture, "ReLU", seed=seed, **options)
            shared = {"kind": "training", "dataset": "Digits", **settings, **bought}
            shared |= {"defence": defence.name, "strength": defence.strength, "steps": steps}
            records.append({**shared, "accuracy": float(right.double().mean())})
    return records

"""How much of an image survives each defence, and what the defence costs the learner."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.data.datasets import Images
from rconv.lab import architectures, defences
from rconv.lab.defences import DELTA, add_noise, epsilon_of_release, epsilon_of_training
from rconv.lab.experiment import model_settings
from rconv.lab.masked import masked_attack
from rconv.lab.records import Record, score
from rconv.lab.training import PARTICIPANTS, learn
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, per_sample_gradients

DOUBTFUL = 1e-2
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

    Parameters
    ----------
    name : str
        Of the defence.
    strength : float or str
        How much of it.
    send : callable
        (gradients of the clients, generator) → what they send.
    random : bool
        Whether it draws from the generator.
    told : Noise, optional
        What the attacker is told of the noise.
    epsilon : float, optional
        What one release has of differential privacy.
    sum_noise : float
        Standard deviation of noise that is added to the sum over the clients.
    """

    name: str
    strength: float | str
    send: Callable[[Gradients, torch.Generator], Gradients]
    random: bool = False
    told: Noise | None = None
    epsilon: float | None = None
    sum_noise: float = 0.0


def _plan(
    noise: Sequence[float],
    clipping: Sequence[Defence],
    shares: Sequence[float],
    dtypes: Sequence[str],
) -> list[Defence]:
    """All defences that are asked for."""
    return [
        *(
            Defence("noise", s, lambda g, r, s=s: add_noise(g, s, r), True, Noise(spread=s))
            for s in noise
        ),
        *clipping,
        *(Defence("prune", s, lambda g, _, s=s: defences.prune(g, s)) for s in shares),
        *(
            Defence("round", t, lambda g, _, t=t: defences.round_to(g, getattr(torch, t)))
            for t in dtypes
        ),
    ]


def protect(
    dataset: str,
    indices: Sequence[int],
    architecture: str,
    filters: Sequence[int],
    *,
    noise: Sequence[float] = (),
    multipliers: Sequence[float] = (),
    shares: Sequence[float] = (),
    dtypes: Sequence[str] = (),
    masked: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
) -> list[Record]:
    """Attack defended gradients of grey images, by ReLU networks in float64.

    Parameters
    ----------
    dataset, indices : str, sequence of int
        As `datasets.load` takes them.
    architecture, filters : str, sequence of int
        As `architectures.build` takes them.
    noise : sequence of float
        Strengths of `defences.add_noise`; the attacker is told them.
    multipliers : sequence of float
        σ of `defences.clip_and_noise`, each client by itself, with a bound of half the smallest
        norm, so that every client clips; the attacker is told the size of the noise. 0 clips only.
    shares : sequence of float
        Of `defences.prune`, against an attacker who takes the zeros for measured.
    dtypes : sequence of str
        Of `defences.round_to`.
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
        much the rank of each layer's equations is short. "paper" uses the noise that it is told.
        "auto" first finds the noise itself, and where its image does not explain the gradients
        tries again with what it is told, and keeps what explains them better.
    """
    truth = grey(datasets.load(dataset, indices))
    model = architectures.build(architecture, 1, datasets.CLASSES[dataset], "ReLU", filters=filters)
    gradients = per_sample_gradients(model, truth.images, truth.labels)
    settings = model_settings(architecture, "ReLU", filters=filters)
    settings = {"kind": "attack", "dataset": dataset, **settings}
    plan = [
        (defence, seed, _answers)
        for defence in _plan(noise, _clipping(gradients, multipliers), shares, dtypes)
        for seed in (seeds if defence.random else seeds[:1])
    ]
    plan += [(defence, 0, _masked) for defence in _plan((), (), masked, ())]
    records = []
    for defence, seed, answers in plan:
        sent = defence.send(gradients, torch.Generator().manual_seed(seed))
        drawn = {"defence": defence.name, "strength": defence.strength, "noise_seed": seed}
        shared = {**settings, **drawn, "epsilon": defence.epsilon}
        for attacker, images, more in answers(model, sent, defence):
            scored = score(images.clamp(0, 1), truth, {**shared, "attacker": attacker})
            records += [record | own for record, own in zip(scored, more, strict=True)]
    return records


def grey(data: Images) -> Images:
    """The same images in grey, one channel: the mean over the channels."""
    return replace(data, images=data.images.mean(dim=1, keepdim=True))


def _clipping(gradients: Gradients, multipliers: Sequence[float]) -> list[Defence]:
    """The Gaussian mechanism with each multiplier."""
    bound = float(defences.norms(gradients).min()) / 2

    def send(sigma: float) -> Callable[[Gradients, torch.Generator], Gradients]:
        return lambda g, generator: defences.clip_and_noise(g, sigma, bound, generator)

    return [
        Defence("clip", 0, send(0))
        if not sigma
        else Defence(
            *("clip", sigma, send(sigma), True),
            Noise(deviations=dict.fromkeys(gradients, sigma * bound)),
            epsilon_of_release(sigma, DELTA),
        )
        for sigma in multipliers
    ]


Answer = tuple[str, Tensor, list[Record]]
"""The attacker, images (N, C, H, W), and further entries of their N records."""


def _answers(model: nn.Sequential, sent: Gradients, defence: Defence) -> Iterator[Answer]:
    """Those of the attackers who take every entry for measured."""
    shape = (1, 32, 32)
    result = Attack(model, shape, constraints="paper")(sent, noise=defence.told)
    yield "paper", result.images, [{"unique": own} for own in result.unique.tolist()]
    kind = "hybrid" if defence.name == "prune" else "auto"
    attack = Attack(model, shape, constraints=kind, signs=False)
    result = attack(sent)
    images, unique, residual = result.images, result.unique, result.gradient_residual
    doubtful = (residual > DOUBTFUL).nonzero()[:, 0]
    if defence.told is not None and len(doubtful):
        part = {name: g[doubtful] for name, g in sent.items()}
        again = attack(part, noise=defence.told)
        better = again.gradient_residual < residual[doubtful]
        images[doubtful[better]] = again.images[better]
        unique[doubtful[better]] = again.unique[better]
    yield kind, images, [{"unique": own} for own in unique.tolist()]


def _masked(model: nn.Sequential, sent: Gradients, defence: Defence) -> Iterator[Answer]:
    """That of the attacker who takes zeros for missing."""
    found = masked_attack(model, (1, 32, 32), sent)
    short = torch.stack([layer.unknowns - layer.rank for layer in found.layers], dim=1)
    explains = (found.gradient_residual < EXPLAINS).tolist()
    more = zip(explains, short.tolist(), strict=True)
    yield "masked", found.images, [{"unique": own, "short": left} for own, left in more]


def accuracies(
    architecture: str,
    filters: Sequence[int],
    *,
    noise: Sequence[float] = (),
    multipliers: Sequence[float] = (),
    shares: Sequence[float] = (),
    dtypes: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    steps: int = 120,
) -> list[Record]:
    """Train on Digits under each defence, from PyTorch's initialisation, and test.

    Parameters
    ----------
    architecture, filters : str, sequence of int
        As `architectures.build` takes them, with ReLU.
    noise, shares, dtypes
        As `protect` takes them; each client defends its own gradient.
    multipliers : sequence of float
        Noise multipliers σ of the sum over the clients, each of which clips to `BOUND`. It is all
        the same to the model whether one whom they trust adds this noise or each of
        `PARTICIPANTS` clients a share of σ / √PARTICIPANTS.
    seeds : sequence of int
        Initialisations, with clients and noise of their own.

    Returns
    -------
    list of dict
        One record per defence, strength and seed: the settings, "accuracy" on `HELD_OUT` images,
        and for `multipliers` what they buy at `DELTA`: "epsilon" of the whole training, for those
        who see the sums, and "epsilon_release" of one step of one client, for a server that sees
        each client's share of the noise.
    """
    data = datasets.load("Digits")
    train, test = (data.select(part) for part in (slice(0, -HELD_OUT), slice(-HELD_OUT, None)))
    clipping = [
        Defence("clip", s, lambda g, _: defences.clip(g, BOUND), sum_noise=s * BOUND)
        for s in multipliers
    ]
    plan = [Defence("none", 0.0, lambda g, _: g), *_plan(noise, clipping, shares, dtypes)]
    options, records = {"filters": filters, "initialisation": "default"}, []
    for own in plan:
        bought = {"epsilon": None, "epsilon_release": None}
        if own.sum_noise:
            bought = _bought(own.strength, len(train), steps)
        for seed in seeds:
            model = architectures.build(architecture, 1, 10, "ReLU", seed=seed, **options).float()
            learn(model, train, own.send, sum_noise=own.sum_noise, steps=steps, seed=seed)
            with torch.no_grad():
                right: Tensor = model(test.images.float()).argmax(dim=1) == test.labels
            settings = model_settings(architecture, "ReLU", seed=seed, **options)
            shared = {"kind": "training", "dataset": "Digits", **settings, **bought}
            shared |= {"defence": own.name, "strength": own.strength, "steps": steps}
            records.append({**shared, "accuracy": float(right.double().mean())})
    return records


def _bought(sigma: float, count: int, steps: int) -> Record:
    """What a noise multiplier buys in a training on `count` images: both epsilons."""
    return {
        "epsilon": epsilon_of_training(sigma, DELTA, PARTICIPANTS / count, steps),
        "epsilon_release": epsilon_of_release(sigma / PARTICIPANTS**0.5, DELTA),
    }

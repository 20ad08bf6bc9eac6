"""What a defence costs the learner: test accuracy of a small network that was trained under it."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.data import datasets
from rconv.data.datasets import Images
from rconv.lab import architectures, defences
from rconv.lab.experiment import model_settings
from rconv.lab.privacy import DELTA, epsilon_of_release, epsilon_of_training
from rconv.lab.records import Record
from rconv.observe.observation import Gradients, per_sample_gradients

BATCH = 64
"""Clients that take part in a step, on average."""

RATE = 1e-2
"""Adam's step size, one for all: Adam does not care how large clipped gradients are. Of 0.003 and
0.01 the better one for noisy gradients, and equal without noise (one seed)."""

BOUND = 1.0
"""Clipping bound. Adam and noise relative to the bound make its size matter little."""

HELD_OUT = 360
"""Test images, the last fifth of Digits: in the order of its publication, other writers' hands."""

Defence = Callable[[Gradients, torch.Generator], Gradients]


def learn(
    model: nn.Sequential,
    train: Images,
    defend: Defence,
    *,
    sum_noise: float = 0.0,
    steps: int = 120,
    seed: int = 0,
) -> nn.Sequential:
    """Train a model in place by Adam, on the mean of what the clients of each step send.

    In each step every image takes part with probability `BATCH` / N, independently (Poisson
    sampling), as a client of its own.

    Parameters
    ----------
    model : Sequential
        float32; its gradients are replaced.
    train : Images
        N of them.
    defend : callable
        (gradients of the clients, generator) → what they send.
    sum_noise : float
        Standard deviation of Gaussian noise that is added to the sum over the clients.
    steps, seed : int
        Number of steps, and what decides clients and noise.

    Returns
    -------
    Sequential
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    images = train.images.float()
    for _ in range(steps):
        chosen = torch.rand(len(train), generator=generator) < BATCH / len(train)
        sent = per_sample_gradients(model, images[chosen], train.labels[chosen])
        sent = defend(sent, generator)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * sum_noise
            parameter.grad = (sent[name].float().sum(dim=0) + noise) / BATCH
        optimiser.step()
    return model


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
    progress: bool = False,
) -> list[Record]:
    """Train on Digits under each defence, from PyTorch's initialisation, and test.

    Parameters
    ----------
    architecture, filters : str, sequence of int
        As `architectures.build` takes them, with ReLU.
    noise : sequence of float
        Strengths of `defences.add_noise`, by each client.
    multipliers : sequence of float
        Noise multipliers σ of the sum over the clients, each of which clips to `BOUND`. It is all
        the same to the model whether one whom they trust adds this noise or each of `BATCH`
        clients a share of σ / √BATCH.
    shares : sequence of float
        Of entries, for `defences.prune`, by each client.
    dtypes : sequence of str
        Keys of `defences.DTYPES`, for `defences.round_to`, by each client.
    seeds : sequence of int
        Initialisations, with clients and noise of their own.
    steps : int
        As `learn` takes it.
    progress : bool
        Show a progress bar over the trainings.

    Returns
    -------
    list of dict
        One record per defence, strength and seed: the settings, "accuracy" on `HELD_OUT` images,
        and for `multipliers` what they buy at `DELTA` (`rconv.lab.privacy`): "epsilon" of the whole
        training, for those who see the sums, and "epsilon_release" of one step of one client, for
        a server that sees each client's share of the noise.
    """
    data = datasets.load("Digits")
    train, test = (_part(data, part) for part in (slice(0, -HELD_OUT), slice(-HELD_OUT, None)))
    plan = list(_plan(noise, multipliers, shares, dtypes))
    bought = {("clip", sigma): _bought(sigma, len(train), steps) for sigma in multipliers}
    options, records = {"filters": filters, "initialisation": "default"}, []
    for name, strength, defend, sum_noise in tqdm(plan, disable=not progress, unit="defence"):
        for seed in seeds:
            model = architectures.build(architecture, 1, 10, "ReLU", seed=seed, **options).float()
            learn(model, train, defend, sum_noise=sum_noise, steps=steps, seed=seed)
            records.append(
                {
                    "kind": "training",
                    "dataset": "Digits",
                    **model_settings(architecture, "ReLU", seed=seed, **options),
                    "defence": name,
                    "strength": strength,
                    "steps": steps,
                    **bought.get((name, strength), {"epsilon": None, "epsilon_release": None}),
                    "accuracy": _accuracy(model, test),
                }
            )
    return records


def _bought(sigma: float, count: int, steps: int) -> Record:
    """What a noise multiplier buys in a training on `count` images: both epsilons."""
    return {
        "epsilon": epsilon_of_training(sigma, DELTA, BATCH / count, steps),
        "epsilon_release": epsilon_of_release(sigma / BATCH**0.5, DELTA),
    }


def _plan(
    noise: Sequence[float],
    multipliers: Sequence[float],
    shares: Sequence[float],
    dtypes: Sequence[str],
) -> Iterator[tuple[str, float | str, Defence, float]]:
    """Name, strength, what each client does, and the noise in the sum."""
    yield "none", 0.0, lambda g, _: g, 0.0
    for s in noise:
        yield "noise", s, lambda g, generator, s=s: defences.add_noise(g, s, generator), 0.0
    for sigma in multipliers:
        yield "clip", sigma, lambda g, _: defences.clip(g, BOUND), sigma * BOUND
    for share in shares:
        yield "prune", share, lambda g, _, share=share: defences.prune(g, share), 0.0
    for name in dtypes:
        yield "round", name, lambda g, _, t=defences.DTYPES[name]: defences.round_to(g, t), 0.0


def _part(data: Images, part: slice) -> Images:
    return Images(data.images[part], data.labels[part], data.indices[part], data.name)


def _accuracy(model: nn.Sequential, test: Images) -> float:
    with torch.no_grad():
        right: Tensor = model(test.images.float()).argmax(dim=1) == test.labels
    return float(right.double().mean())

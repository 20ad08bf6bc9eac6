"""Short, seeded trainings: of a network that has seen its images, and of one under a defence."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from rconv.data.datasets import Images
from rconv.observe.observation import Gradients, per_sample_gradients

EPOCHS, BATCH, RATE = 40, 10, 1e-3
"""Of `train`. The rate is that which Adam's authors propose; plain SGD leaves most of these
networks at chance."""

PARTICIPANTS = 64
"""Clients that take part in a step of `learn`, on average."""

CLIENTS_RATE = 1e-2
"""Adam's step size in `learn`, one for all: Adam does not care how large clipped gradients are. Of
0.003 and 0.01 the better one for noisy gradients, and equal without noise (one seed)."""


def train(
    model: nn.Sequential, data: Images, *, epochs: int = EPOCHS, batch: int = BATCH, seed: int = 0
) -> tuple[nn.Sequential, float]:
    """Train a copy of a classifier by Adam on cross-entropy, in float32.

    The network has one logit per class, in any dtype, and stays as it is. All images are shown once
    an epoch, in an order that the seed decides: the same seed gives the same weights, to the last
    bit, on the same machine with the same number of threads. Returns the trained copy, in
    evaluation mode and in the dtype of the original, its weights being float32 numbers; and the
    share of the images that it classifies correctly, in [0, 1].
    """
    if epochs < 0 or batch < 1:
        raise ValueError(f"{epochs} epochs in batches of {batch}: give 0 or more, and 1 or more")
    trained = copy.deepcopy(model).float().train()
    optimiser = torch.optim.Adam(trained.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(seed)
    images, labels = data.images.float(), data.labels
    if trained(images[:1]).shape[1] == 1:
        raise ValueError("a network with one logit is no classifier of these labels")
    for _ in range(epochs):
        for part in torch.randperm(len(data), generator=order).split(batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(trained(images[part]), labels[part]).backward()
            optimiser.step()
    trained.eval()
    with torch.no_grad():
        right = trained(images).argmax(dim=1) == labels
    return trained.to(next(model.parameters()).dtype), float(right.double().mean())


def learn(
    model: nn.Sequential,
    train: Images,
    defend: Callable[[Gradients, torch.Generator], Gradients],
    *,
    sum_noise: float = 0.0,
    steps: int = 120,
    seed: int = 0,
) -> nn.Sequential:
    """Train a model in place by Adam, on the mean of what the clients of each step send.

    In each step every image takes part with probability `PARTICIPANTS` / N, independently (Poisson
    sampling), as a client of its own. The model is float32. `defend` takes the clients' gradients
    and a generator, and returns what they send; Gaussian noise of the standard deviation
    `sum_noise` is added to the sum over the clients.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=CLIENTS_RATE)
    images = train.images.float()
    for _ in range(steps):
        chosen = torch.rand(len(train), generator=generator) < PARTICIPANTS / len(train)
        sent = per_sample_gradients(model, images[chosen], train.labels[chosen])
        sent = defend(sent, generator)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * sum_noise
            parameter.grad = (sent[name].float().sum(dim=0) + noise) / PARTICIPANTS
        optimiser.step()
    return model

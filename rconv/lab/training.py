"""A network that has seen its images: a short, seeded training, and how well it does afterwards."""

import copy

import torch
from torch import nn

from rconv.data.datasets import Images

EPOCHS = 40
BATCH = 10
RATE = 1e-3
"""Of Adam, whose authors propose it. Plain SGD leaves most of these networks at chance."""


def train(
    model: nn.Sequential,
    data: Images,
    *,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    rate: float = RATE,
    seed: int = 0,
) -> tuple[nn.Sequential, float]:
    """Train a copy of a classifier by Adam on cross-entropy, in float32.

    Parameters
    ----------
    model : Sequential
        A network with one logit per class, in any dtype; it stays as it is.
    data : Images
        Training images, all of them shown once an epoch.
    epochs : int
        Passes over the images; 0 leaves the copy as it was, rounded to float32.
    batch : int
        Images a step.
    rate : float
        Adam's step size.
    seed : int
        Decides the order of the images. The same seed gives the same weights, to the last bit, on
        the same machine with the same number of threads.

    Returns
    -------
    model : Sequential
        The trained copy, in evaluation mode and in the dtype of the original; its weights are
        float32 numbers.
    accuracy : float
        Share of `data` that it classifies correctly, in [0, 1].

    Raises
    ------
    ValueError
        If there are no epochs to count, no image in a batch, or one logit only.
    """
    if epochs < 0 or batch < 1:
        raise ValueError(f"{epochs} epochs in batches of {batch}: give 0 or more, and 1 or more")
    trained = copy.deepcopy(model).float().train()
    optimiser = torch.optim.Adam(trained.parameters(), lr=rate)
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

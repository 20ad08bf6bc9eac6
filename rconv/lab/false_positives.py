"""Looks for the most dangerous failure: an image that is wrong and called unique.

Random networks, photographs and clients that do not send what the attacker expects; the verdict of
the attack is compared with the truth.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rconv.attack.attack import Attack
from rconv.lab import channels
from rconv.lab.channels import Client, computed, disturbed, pair, several_steps
from rconv.lab.random_networks import NETWORKS, random_images
from rconv.lab.records import Record, score

CASES: dict[str, tuple[Client, dict]] = {
    "float64": (computed(torch.float64), {}),
    "float32": (computed(torch.float32), {}),
    "bfloat16": (computed(torch.bfloat16), {}),
    "float16": (computed(torch.float16), {}),
    "float32, paper": (computed(torch.float32), {"constraints": "paper"}),
    "float16, paper": (computed(torch.float16), {"constraints": "paper"}),
    "noise 1e-6": (disturbed(channels.noisy), {}),
    "weight decay 1e-7": (disturbed(channels.decayed), {}),
    "first gradient zeroed": (disturbed(channels.first_zeroed), {}),
    "one entry in twenty zeroed": (disturbed(channels.partly_zeroed), {}),
    "two images averaged": (channels.averaged, {}),
    "two local steps": (several_steps(2, 0.01, torch.float64), {}),
    "clipped layer by layer": (disturbed(channels.clipped), {}),
    "signs": (disturbed(channels.signs), {}),
    "other loss, no biases": (disturbed(channels.unchanged, channels.squared_error), {}),
}
"""Clients that the attacker takes for honest ones, and the attack's settings."""

LOW = 0.05
"""Range of the pixels of an image of low contrast, about the middle of all values."""

SIMILAR: dict[str, Callable[[Tensor], Tensor]] = {
    "shifted": channels.shifted, "brighter": channels.brighter, "grainy": channels.grainy,
}  # fmt: skip

CLIENTS: dict[str, Client] = {
    **{
        f"{count} steps, rate {rate:g}, {what}, {dtype}": several_steps(
            count, rate, getattr(torch, dtype), weights=what == "weights"
        )
        for count in (2, 5, 10)
        for rate in (1e-4, 1e-3, 1e-2)
        for what in ("gradients", "weights")
        for dtype in ("float64", "float32")
    },
    **{
        f"{kind}, {label} label, {dtype}": pair(make, getattr(torch, dtype), same=label == "same")
        for kind, make in SIMILAR.items()
        for label in ("same", "other")
        for dtype in ("float64", "float32", "bfloat16", "float16")
    },
    **{
        f"one step, rate {rate:g}, weights": several_steps(1, rate, weights=True)
        for rate in (1e-4, 1e-3, 1e-2, 1e-1)
    },
}
"""Clients that send something else than the gradients of one image; and, in the last four cases,
the weights after one step, which are to be right. The attack on them has no prior: what a prior
chooses is never called unique."""


def attack_random_networks(
    seeds: range,
    case: str = "float64",
    network: str = "random",
    *,
    batch: int | None = 1,
    low_contrast: bool = False,
) -> list[Record]:
    """Attack photographs through random networks, and compare the verdict with the truth.

    One network and one photograph for each seed. `case` is a key of `CASES` or of `CLIENTS`,
    `network` one of `rconv.lab.random_networks.NETWORKS`, `batch` as the attack takes it; with
    `low_contrast` the pixels have a range of `LOW` only. Returns one record per image of an answer,
    as `rconv.lab.records.score` has it, compared with the nearest of those that are right;
    "network" is the seed.
    """
    for name, known in ((case, {**CASES, **CLIENTS}), (network, NETWORKS)):
        if name not in known:
            raise ValueError(f"unknown {name!r}: use one of {', '.join(known)}")
    client, settings = CASES.get(case) or (CLIENTS[case], {"prior": False})
    count = 2 if client is channels.averaged else 1
    records: list[Record] = []
    for seed in seeds:
        options = {"bias": False} if case == "other loss, no biases" else {}
        model, shape = NETWORKS[network](seed, **options)
        x = random_images(shape, count, seed)
        if low_contrast:
            x = 0.5 + LOW * (x - 0.5)
        first = seed if case in CLIENTS else 0
        labels = (first + torch.arange(count)) % max(2, model[-1].out_features)
        try:
            sent = client(model, x, labels)
        except ValueError:  # steps below the rounding of the weights are refused: no verdict
            continue
        found = Attack(sent.model, shape, **settings)(sent.gradients, noise=sent.noise, batch=batch)
        right = _nearest(found.images, sent.truths)
        records += score(found, right, {"network": seed, "case": case}, layers=False)
    return records


def _nearest(found: Tensor, truths: tuple[Tensor, ...]) -> Tensor:
    """For each image found, the nearest of its truths."""
    each = torch.stack([truth.expand_as(found) for truth in truths])
    errors = (each - found).flatten(2).norm(dim=2)
    return each[errors.argmin(dim=0), torch.arange(len(found))]

"""Looks for the most dangerous failure: an image that is wrong and called unique.

Random networks, photographs and disturbances of the gradients; the verdict of the attack is
compared with the truth.
"""

import torch
from torch import Tensor

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.lab.disturbances import (
    Change,
    averaged,
    clipped,
    computed,
    decay,
    noise,
    other_loss,
    signs,
    steps,
    zeroed,
)
from rconv.lab.metrics import psnr
from rconv.lab.random_networks import random_images, random_network
from rconv.lab.records import Record, finite
from rconv.observe.observation import per_sample_gradients

BAR = 40.0
"""PSNR in dB below which an image counts as wrong here."""

FACTOR = 10.0
"""An error above this multiple of the expected one was not expected."""

CASES: dict[str, tuple[Change | None, dict]] = {
    "float64": (None, {}),
    "float32": (computed(torch.float32), {}),
    "float16": (computed(torch.float16), {}),
    "float32, paper": (computed(torch.float32), {"constraints": "paper"}),
    "float16, paper": (computed(torch.float16), {"constraints": "paper"}),
    "noise 1e-6": (noise, {}),
    "weight decay 1e-7": (decay, {}),
    "first gradient zeroed": (zeroed, {}),
    "two images averaged": (averaged, {}),
    "two local steps": (steps, {}),
    "clipped layer by layer": (clipped, {}),
    "signs": (signs, {}),
    "other loss, no biases": (other_loss, {}),
}
"""What is tried: how the gradients are changed, and the attack's settings."""


def hunt(seeds: range, case: str = "float64", images: int = 1) -> list[Record]:
    """Attack photographs through random networks, and compare the verdict with the truth.

    Parameters
    ----------
    seeds : range
        One network each.
    case : str
        A key of `CASES`.
    images : int
        Photographs per network.

    Returns
    -------
    list of Record
        One per image: what was tried, the verdict, and whether it is false.

    Raises
    ------
    ValueError
        An unknown case.
    """
    if case not in CASES:
        raise ValueError(f"unknown case {case!r}: use one of {', '.join(CASES)}")
    change, settings = CASES[case]
    count = max(images, 2) if change is averaged else images
    records: list[Record] = []
    for seed in seeds:
        model, shape = random_network(seed, bias=False if change is other_loss else None)
        x = random_images(shape, count, seed)
        labels = torch.arange(count) % max(2, model[-1].out_features)
        gradients = per_sample_gradients(model, x, labels)
        if change is not None:
            gradients = change(gradients, model, x, labels)
        found = Attack(model, shape, **settings)(gradients)
        # Of two images averaged, that of either client is right: one may outweigh the other.
        others = x.roll(1, 0) if change is averaged else x
        records += judge(found, _nearer(found.images, x, others), {"network": seed, "case": case})
    return records


def _nearer(found: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """For each image found, the nearer of two truths."""
    errors = [(found - truth).flatten(1).norm(dim=1) for truth in (one, other)]
    return torch.where((errors[0] <= errors[1]).reshape(-1, 1, 1, 1), one, other)


def near(record: Record) -> bool:
    """Whether the true error of a record of `judge` is the expected one, within `FACTOR`."""
    return 1 / FACTOR <= record["error"] / record["expected_error"] <= FACTOR


def judge(
    found: Reconstruction, truth: Tensor, settings: Record, *, data_range: float = 1.0
) -> list[Record]:
    """Errors, verdicts, and which of these are false.

    A verdict is false where an image is called unique, its error is above `FACTOR` times the
    expected one, and its PSNR is below `BAR`.

    Parameters
    ----------
    found : Reconstruction
        Of N images.
    truth : Tensor
        (N, C, H, W).
    settings : Record
        Entries that all records share.
    data_range : float
        The difference between the largest and the smallest value that a pixel can have.

    Returns
    -------
    list of Record
        One per image.
    """
    size = truth.flatten(1).norm(dim=1)
    error = (found.images - truth).flatten(1).norm(dim=1) / size
    quality = psnr(found.images, truth, data_range=data_range)
    wrong = ~((error <= FACTOR * found.expected_error) | (quality >= BAR))
    return [
        {
            **settings,
            "image": i,
            "psnr": finite(quality[i]),
            "right": bool(quality[i] >= BAR),
            "error": finite(error[i]),
            "expected_error": finite(found.expected_error[i]),
            "gradient_residual": finite(found.gradient_residual[i]),
            "full_rank": bool(found.full_rank[i]),
            "unique": bool(found.unique[i]),
            "doubt": found.doubts[i],
            "false": bool(found.unique[i] and wrong[i]),
        }
        for i in range(len(truth))
    ]

"""Looks for the most dangerous failure: an image that is wrong and called unique.

Random networks, photographs and disturbances of the gradients; the verdict of the attack is
compared with the truth.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rconv.attack.attack import Attack
from rconv.attack.report import CLEAR, Reconstruction
from rconv.attack.verdict import image_size
from rconv.lab.disturbances import (
    Change,
    averaged,
    clipped,
    computed,
    decay,
    noise,
    other_loss,
    partly_zeroed,
    signs,
    steps,
    zeroed,
)
from rconv.lab.metrics import psnr
from rconv.lab.random_networks import NETWORKS, random_images, random_network
from rconv.lab.records import Record, finite
from rconv.lab.several import Client, Sent, brighter, grainy, pair, several_steps, shifted
from rconv.observe.observation import per_sample_gradients

BAR = 40.0
"""PSNR in dB below which an image counts as wrong here."""

FACTOR = 10.0
"""An error above this multiple of the expected one was not expected."""

LOW = 0.05
"""Range of the pixels of an image of low contrast, about the middle of all values."""

CASES: dict[str, tuple[Change | None, dict]] = {
    "float64": (None, {}),
    "float32": (computed(torch.float32), {}),
    "float16": (computed(torch.float16), {}),
    "float32, paper": (computed(torch.float32), {"constraints": "paper"}),
    "float16, paper": (computed(torch.float16), {"constraints": "paper"}),
    "noise 1e-6": (noise, {}),
    "weight decay 1e-7": (decay, {}),
    "first gradient zeroed": (zeroed, {}),
    "one entry in twenty zeroed": (partly_zeroed, {}),
    "two images averaged": (averaged, {}),
    "two local steps": (steps, {}),
    "clipped layer by layer": (clipped, {}),
    "signs": (signs, {}),
    "other loss, no biases": (other_loss, {}),
}
"""What is tried: how the gradients are changed, and the attack's settings."""

DTYPES = {str(t)[6:]: t for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}

SIMILAR: dict[str, Callable[[Tensor], Tensor]] = {
    "shifted": shifted, "brighter": brighter, "grainy": grainy,
}  # fmt: skip

CLIENTS: dict[str, Client] = {
    **{
        f"{count} steps, rate {rate:g}, {what}, {dtype}": several_steps(
            count, rate, DTYPES[dtype], weights=what == "weights"
        )
        for count in (2, 5, 10)
        for rate in (1e-4, 1e-3, 1e-2)
        for what in ("gradients", "weights")
        for dtype in ("float64", "float32")
    },
    **{
        f"{kind}, {label} label, {dtype}": pair(make, DTYPES[dtype], same=label == "same")
        for kind, make in SIMILAR.items()
        for label in ("same", "other")
        for dtype in DTYPES
    },
    **{
        f"one step, rate {rate:g}, weights": several_steps(1, rate, weights=True)
        for rate in (1e-4, 1e-3, 1e-2, 1e-1)
    },
}
"""Clients that send something else than the gradients of one image; and, in the last four cases,
the weights after one step, which are to be right."""


def hunt_clients(
    seeds: range,
    case: str,
    network: str = "wide",
    *,
    batch: int | None = 1,
    low_contrast: bool = False,
) -> list[Record]:
    """Attack what a client sends that makes several steps or averages two similar images.

    Parameters
    ----------
    seeds : range
        One network and one photograph each.
    case : str
        A key of `CLIENTS`, or a dtype of `DTYPES`: then the client is as the attacker expects.
    network : str
        A key of `rconv.lab.random_networks.NETWORKS`.
    batch : int, optional
        As the attack takes it.
    low_contrast : bool
        Whether the photograph has pixels in a range of `LOW` only.

    Returns
    -------
    list of Record
        One per image of an answer, compared with the nearest of the images that the client has.

    Raises
    ------
    ValueError
        An unknown case or network.
    """
    for name, known in ((case, {**CLIENTS, **DTYPES}), (network, NETWORKS)):
        if name not in known:
            raise ValueError(f"unknown {name!r}: use one of {', '.join(known)}")
    records: list[Record] = []
    for seed in seeds:
        model, shape = NETWORKS[network](seed)
        x = random_images(shape, 1, seed)
        if low_contrast:
            x = 0.5 + LOW * (x - 0.5)
        labels = torch.tensor([seed]) % max(2, model[-1].out_features)
        try:
            sent = _sent(case, model, x, labels)
        except ValueError:  # steps below the rounding of the weights are refused: no verdict
            continue
        if case in CLIENTS and "float64" not in case:
            model = model.float()
        attack = Attack(model, shape, prior=False)  # what a prior chooses is never called unique
        found = attack(sent.gradients, noise=sent.noise, batch=batch)
        truths = [own.expand(len(found.images), -1, -1, -1) for own in sent.truths]
        own = {"network": f"{network} {seed}", "case": case}
        records += judge(found, _nearer(found.images, truths[0], truths[-1]), own)
    return records


def _sent(case: str, model: torch.nn.Module, images: Tensor, labels: Tensor) -> Sent:
    """What the client of a case sends."""
    if case in CLIENTS:
        return CLIENTS[case](model, images, labels)
    gradients = per_sample_gradients(model, images, labels)
    if case != "float64":
        gradients = computed(DTYPES[case])(gradients, model, images, labels)
    return Sent(gradients, None, (images,))


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

    A verdict is false where an image is called unique and is wrong: its PSNR is below `BAR`, or
    its error is above `CLEAR` of its size, which is small where the contrast is low
    (`rconv.attack.verdict.image_size`).

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
    size = image_size(truth, (0.0, data_range))
    error = (found.images - truth).flatten(1).square().mean(dim=1).sqrt() / size
    quality = psnr(found.images, truth, data_range=data_range)
    right = (quality >= BAR) & (error <= CLEAR)
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
            "doubt": found.diagnostics[i],
            "false": bool(found.unique[i] and not right[i]),
        }
        for i in range(len(truth))
    ]

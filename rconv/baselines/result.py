"""What a baseline hands back."""

from dataclasses import dataclass

import torch
from torch import Tensor

RUNAWAY = 1e3
"""Pixels and the attacks' starts are of order one; no image has a pixel of this size."""


@dataclass(frozen=True)
class BaselineResult:
    """N reconstructed images and how the attack on each of them went.

    Attributes
    ----------
    images : (N, C, H, W), in the dtype of the gradients, on the model's device. Not clipped,
        unless the attack itself projects onto the value range; not a number where it broke down.
    labels : (N,) int64, class of each image as known to the attack or found by it.
    history : N tensors (T,), float64: what the attack minimises, from its start to its end. For
        R-GAP, which minimises nothing, the relative residual of each layer from the head down.
    objective : (N,) float64, distance between the gradients of `images` and the observed ones,
        as the attack measures it: the value that `history` ends with, or its best one.
    iterations : (N,) int64, steps taken.
    diverged : (N,) bool: the objective is not a number, or no better than at the start, or no
        better than that of gradients which are zero or orthogonal to the observed ones; or the
        image has run away to values beyond `RUNAWAY`, where saturated activations no longer
        pull it back.
    """

    images: Tensor
    labels: Tensor
    history: tuple[Tensor, ...]
    objective: Tensor
    iterations: Tensor
    diverged: Tensor


@dataclass(frozen=True)
class Run:
    """The attack on one image.

    Attributes
    ----------
    image : (1, C, H, W).
    label : its class.
    history : objective from the start to the end.
    objective : of `image`.
    iterations : steps taken.
    worthless : the objective of an image that explains nothing of the gradients, or that of the
        start where it is smaller.
    """

    image: Tensor
    label: int
    history: list[float]
    objective: float
    iterations: int
    worthless: float

    @property
    def diverged(self) -> bool:
        """Whether the image explains nothing, or is none."""
        within = bool(self.image.abs().amax() < RUNAWAY)  # False where it is not a number
        return not (within and self.objective < self.worthless)


def collect(runs: list[Run]) -> BaselineResult:
    """The result of N runs, one per image."""
    images = torch.cat([run.image for run in runs])

    def column(values, dtype):
        return torch.tensor(values, dtype=dtype, device=images.device)

    return BaselineResult(
        images,
        column([run.label for run in runs], torch.int64),
        tuple(torch.tensor(run.history, dtype=torch.float64) for run in runs),
        column([run.objective for run in runs], torch.float64),
        column([run.iterations for run in runs], torch.int64),
        column([run.diverged for run in runs], torch.bool),
    )

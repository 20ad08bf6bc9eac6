"""What a baseline hands back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RUNAWAY = 1e3
"""Pixels and the attacks' starts are of order one; no image has a pixel of this size."""

Watch = Callable[[Tensor, float], None]
"""watch(image (1, C, H, W), objective), called after each iteration of an optimisation."""


@dataclass(frozen=True)
class BaselineResult:
    """N reconstructed images and how the attack on each of them went.

    Parameters
    ----------
    images : Tensor
        Axes (N, C, H, W), in the dtype of the gradients, on the model's device. Not clipped,
        unless the attack itself projects onto the value range; not a number where it broke down.
    labels : Tensor, int64
        Axis (N,): class of each image as known to the attack or found by it.
    history : tuple of Tensor
        N tensors (T,), float64: what the attack minimises, from its start to its end. For R-GAP,
        which minimises nothing, the relative residual of each layer from the head down.
    objective : Tensor, float64
        Axis (N,): distance between the gradients of `images` and the observed ones, as the attack
        measures it: the value that `history` ends with, or its best one.
    iterations : Tensor, int64
        Axis (N,): steps taken, by the start that was kept.
    diverged : Tensor, bool
        Axis (N,): the objective is not a number, or no better than at the start, or no better
        than that of gradients which are zero or orthogonal to the observed ones; or the image has
        run away to values beyond `RUNAWAY`, where saturated activations no longer pull it back.
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

    Parameters
    ----------
    image : Tensor
        Axes (1, C, H, W).
    label : int
        Its class.
    history : list of float
        Objective from the start to the end.
    objective : float
        Of `image`.
    iterations : int
        Steps taken.
    worthless : float
        The objective of an image that explains nothing of the gradients, or that of the start
        where it is smaller.
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

    def column(values: list, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=images.device)

    return BaselineResult(
        images,
        column([run.label for run in runs], torch.int64),
        tuple(torch.tensor(run.history, dtype=torch.float64) for run in runs),
        column([run.objective for run in runs], torch.float64),
        column([run.iterations for run in runs], torch.int64),
        column([run.diverged for run in runs], torch.bool),
    )

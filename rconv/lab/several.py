"""Clients whose gradients look like one step on one image and are none: several steps, two images.

Each function returns a client: from the model, one image and its label, what it sends.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, per_sample_gradients
from rconv.observe.update import gradients_from_update


@dataclass(frozen=True)
class Sent:
    """What an attacker receives, and what is right.

    Parameters
    ----------
    gradients : dict of str to Tensor
        Name → (N, *parameter shape).
    noise : Noise or None
        What is known of their errors beyond the rounding of their dtype.
    truths : tuple of Tensor
        Images (N, C, H, W): an answer that is one of them is right.
    """

    gradients: Gradients
    noise: Noise | None
    truths: tuple[Tensor, ...]


Client = Callable[[nn.Module, Tensor, Tensor], Sent]
"""(model, images (N, C, H, W), labels) → what is sent."""


def several_steps(
    count: int, rate: float, dtype: torch.dtype = torch.float32, *, weights: bool = False
) -> Client:
    """A client that makes several steps of SGD on one image, and sends their sum.

    Parameters
    ----------
    count : int
        Steps.
    rate : float
        The learning rate.
    dtype : torch.dtype
        In which the client computes: float64 or float32.
    weights : bool
        Send the new weights instead, from which the attacker computes the gradients.

    Returns
    -------
    Client
    """

    def send(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
        own = copy.deepcopy(model).to(dtype)
        before = {name: p.detach().clone() for name, p in own.named_parameters()}
        sums = {name: torch.zeros_like(p) for name, p in before.items()}
        for _ in range(count):
            step = per_sample_gradients(own, images, labels)
            with torch.no_grad():
                for name, parameter in own.named_parameters():
                    sums[name] += step[name][0]
                    parameter -= rate * step[name][0]
        after = {name: p.detach()[None] for name, p in own.named_parameters()}
        if weights:
            return Sent(*gradients_from_update(before, after, rate), (images,))
        return Sent({name: g[None] for name, g in sums.items()}, None, (images,))

    return send


def pair(
    other: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64, *, same: bool = True
) -> Client:
    """A client that averages the gradients of an image and of another one that is similar.

    Parameters
    ----------
    other : callable
        Makes the other image: `shifted`, `brighter` or `grainy`.
    dtype : torch.dtype
        Of what is sent; all but float64 are rounded from float32.
    same : bool
        Whether both have the same label.

    Returns
    -------
    Client
    """

    def send(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
        own = copy.deepcopy(model) if dtype == torch.float64 else copy.deepcopy(model).float()
        second, classes = other(images), _classes(own, images)
        each = [
            per_sample_gradients(own, images, labels),
            per_sample_gradients(own, second, labels if same else (labels + 1) % classes),
        ]
        mean = {name: ((g + each[1][name]) / 2).to(dtype) for name, g in each[0].items()}
        return Sent(mean, None, (images, second))

    return send


def shifted(images: Tensor) -> Tensor:
    """The images one column further to the right, the last column first."""
    return images.roll(1, 3)


def brighter(images: Tensor) -> Tensor:
    """The images 20 % brighter, at most 1."""
    return (1.2 * images).clamp(max=1)


def grainy(images: Tensor) -> Tensor:
    """The images with Gaussian noise of 0.1, within [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
    return (images + 0.1 * noise).clamp(0, 1)


def _classes(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad():
        return max(2, model(images.to(next(model.parameters()))).shape[1])

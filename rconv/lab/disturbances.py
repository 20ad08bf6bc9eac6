"""What may have happened to gradients before they reach an attacker who expects them as they are.

Each function takes the gradients of N clients, the shared model, the images and the labels, and
returns what is sent instead.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rconv.linalg.solution import root_mean_square
from rconv.observe.observation import Gradients, per_sample_gradients

Change = Callable[[Gradients, nn.Module, Tensor, Tensor], Gradients]
"""(gradients, model, images, labels) → what is sent instead."""


def computed(dtype: torch.dtype) -> Change:
    """Clients that compute in a dtype; for float16, rounded float32 gradients."""

    def change(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor):
        own = copy.deepcopy(model).float()
        return {n: g.to(dtype) for n, g in per_sample_gradients(own, images, labels).items()}

    return change


def noise(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """Gaussian noise of 1e-6 of each parameter's root mean square, which nobody tells."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: g
        + 1e-6
        * root_mean_square(g).reshape(-1, *[1] * (g.dim() - 1))
        * torch.randn(g.shape, generator=generator, dtype=g.dtype)
        for name, g in gradients.items()
    }


def decay(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """A weight decay of 1e-7 inside the gradients."""
    parameters = dict(model.named_parameters())
    return {name: g + 1e-7 * parameters[name].detach() for name, g in gradients.items()}


def zeroed(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """The first convolution's weight gradient is left out."""
    first = next(iter(gradients))
    return {name: g * 0 if name == first else g for name, g in gradients.items()}


def partly_zeroed(
    gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor
) -> Gradients:
    """One entry in twenty is replaced by zero."""
    generator = torch.Generator().manual_seed(0)
    return {n: g * (torch.rand(g.shape, generator=generator) > 0.05) for n, g in gradients.items()}


def averaged(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """Each client averages its own image with the next one's."""
    return {name: (g + g.roll(1, 0)) / 2 for name, g in gradients.items()}


def steps(
    gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor, rate: float = 0.01
) -> Gradients:
    """Each client takes two steps with a learning rate, and sends their sum."""
    sent = {name: g.clone() for name, g in gradients.items()}
    for n in range(len(images)):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter -= rate * gradients[name][n]
        one = slice(n, n + 1)
        for name, g in per_sample_gradients(moved, images[one], labels[one]).items():
            sent[name][n] += g[0]
    return sent


def clipped(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """Every parameter's gradient is cut to the norm 0.1, on its own."""
    factors = {
        name: (0.1 / g.flatten(1).norm(dim=1)).clamp(max=1.0) for name, g in gradients.items()
    }
    return {
        name: g * factors[name].reshape(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()
    }


def signs(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """Only the signs are sent."""
    return {name: g.sign() for name, g in gradients.items()}


def other_loss(gradients: Gradients, model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """The clients minimise a squared error, where the attack expects cross-entropy."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return (logits.squeeze() - target.squeeze()).square().sum()

    return per_sample_gradients(model, images, labels, loss)

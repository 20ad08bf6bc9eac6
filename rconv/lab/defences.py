"""What a client can do to its gradients before it sends them, one image per client.

Gradients are mappings of a parameter's name to `(N, *parameter shape)`, N clients. Every defence
treats each client by itself and returns gradients of the same shapes, in a new mapping; random ones
draw from a generator, so that a seed repeats them.
"""

import torch
from torch import Tensor

from rconv.observe.observation import Gradients

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Shorter numbers, by name, that gradients are sent in."""


def add_noise(
    gradients: Gradients, strength: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Gaussian noise on every entry, relative to the root mean square of its own parameter.

    Parameters
    ----------
    gradients : mapping of str to Tensor
        Floating point.
    strength : float
        Standard deviation of the noise over that root mean square.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    dict of str to Tensor
        g + strength · rms(g) · ε.
    """
    return {
        name: g + strength * _per_client(g.flatten(1).square().mean(dim=1).sqrt(), g) * normal
        for (name, g), normal in zip(gradients.items(), _normals(gradients, generator), strict=True)
    }


def clip(gradients: Gradients, bound: float) -> dict[str, Tensor]:
    """Scale each client's gradients, all parameters together, to a norm of at most `bound`.

    Parameters
    ----------
    gradients : mapping of str to Tensor
        Floating point.
    bound : float
        Largest Euclidean norm that a client sends.

    Returns
    -------
    dict of str to Tensor
        g · min(1, bound / ‖g‖).
    """
    size = norms(gradients)
    factor = bound / size.clamp(min=bound)
    return {name: g * _per_client(factor, g) for name, g in gradients.items()}


def clip_and_noise(
    gradients: Gradients, multiplier: float, bound: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Clip, then add Gaussian noise of the same size to every entry: the Gaussian mechanism.

    What it buys is in `rconv.lab.privacy`.

    Parameters
    ----------
    gradients : mapping of str to Tensor
        Floating point.
    multiplier : float
        σ, standard deviation of the noise over `bound`.
    bound : float
        C, as `clip` takes it.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    dict of str to Tensor
        clip(g) + σ · C · ε.
    """
    clipped = clip(gradients, bound)
    return {
        name: g + multiplier * bound * normal
        for (name, g), normal in zip(clipped.items(), _normals(clipped, generator), strict=True)
    }


def prune(gradients: Gradients, share: float) -> dict[str, Tensor]:
    """Set the smallest entries of every parameter's gradient to zero.

    Parameters
    ----------
    gradients : mapping of str to Tensor
        Any dtype.
    share : float
        Of the entries of each parameter, in [0, 1]. At least one entry of each stays.

    Returns
    -------
    dict of str to Tensor
        The other entries, as they were.
    """
    pruned = {}
    for name, g in gradients.items():
        size = g.abs().flatten(1)
        count = min(int(share * size.shape[1]), size.shape[1] - 1)
        smallest = size.argsort(dim=1)[:, :count]
        pruned[name] = g.flatten(1).scatter(1, smallest, 0.0).reshape(g.shape)
    return pruned


def round_to(gradients: Gradients, dtype: torch.dtype) -> dict[str, Tensor]:
    """Round every entry to a shorter floating-point number, and send it as that."""
    return {name: g.to(dtype) for name, g in gradients.items()}


def norms(gradients: Gradients) -> Tensor:
    """Euclidean norm of each client's gradients, all parameters together: (N,)."""
    return torch.cat([g.flatten(1) for g in gradients.values()], dim=1).norm(dim=1)


def _normals(gradients: Gradients, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradients.values()]


def _per_client(values: Tensor, like: Tensor) -> Tensor:
    """(N,) values, shaped to multiply (N, …)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))

"""Which derivatives by a convolution's output the rest of the model can give at all.

The model is run with random maps in place of the output, backwards from random derivatives of
its result. What never shows, whatever the maps, is a property of what lies above: pooling that
passes positions over, normalisation by the image, behind which the derivative sums to zero.
"""

import torch
from torch import Tensor, nn

SCALES = (0.3, 1.0, 3.0)
"""Root mean squares of the maps, so that activations that saturate are met on either side."""

ENOUGH = 4
"""Derivatives that are drawn per position, at least: a position that is passed on to the loss one
time in three is missed by all of 16 filters and 12 draws with a chance of 1e-34."""

NONE = 1e-9
"""Share of the largest singular value below which a combination is never reached."""


def reach(model: nn.Module, name: str, images: tuple[int, int, int]) -> Tensor:
    """Combinations of positions that ∂ℓ/∂O of one convolution can be made of.

    Parameters
    ----------
    model : Module
        In float64, as `without_statistics` gives it.
    name : str
        The convolution.
    images : tuple of int
        (C, H, W) of one image.

    Returns
    -------
    Tensor
        Q, (L, m), orthonormal columns; every filter's row of Ō, (D, L), is a combination of them.
        No columns where nothing of the output reaches the result.
    """
    convolution = model.get_submodule(name)
    example = convolution.weight
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    with torch.enable_grad():
        while (
            sum(map(len, found)) < ENOUGH * (found[0].shape[1] if found else 1) or len(found) < 12
        ):
            scale = SCALES[len(found) % len(SCALES)]
            found.append(_derivative(model, convolution, images, scale, generator).to(example))
    rows = torch.cat([own / own.norm().clamp(min=1e-300) for own in found])
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sizes > NONE * sizes[0]].mT.contiguous()


def _derivative(
    model: nn.Module,
    convolution: nn.Conv2d,
    images: tuple[int, int, int],
    scale: float,
    generator: torch.Generator,
) -> Tensor:
    """(D, L), of a random result by a random output of the convolution."""
    given: list[Tensor] = []

    def replaced(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        given.append(scale * torch.randn(output.shape, generator=generator, dtype=torch.float64))
        given[0] = given[0].to(output).requires_grad_()
        return given[0]

    handle = convolution.register_forward_hook(replaced)
    image = torch.rand((1, *images), generator=generator, dtype=torch.float64)
    result = model(image.to(convolution.weight))
    handle.remove()
    weight = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)
    (own,) = torch.autograd.grad(result, given[0], weight, materialize_grads=True)
    return own[0].flatten(1)

"""Which derivatives by a convolution's output the rest of the model can give at all.

The model is run with random maps in place of the outputs of convolutions, backwards from random
derivatives of its result. What never shows, whatever the maps, is a property of what lies above:
pooling that passes positions over, normalisation by the image, behind which the derivative sums
to zero. One pass gives the derivatives by all convolutions, since these pass derivatives on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rconv.model.simulate import InFloat64
from rconv.model.wrappers import shared_copy, tensor_of

SCALES = (0.3, 1.0, 3.0)
"""Root mean squares of the maps, so that activations that saturate are met on either side."""

ENOUGH = 4
"""Derivatives that are drawn per position, at least: a position that is passed on to the loss one
time in three is missed by all of 16 filters and 12 draws with a chance of 1e-34."""

PASSES = 12
"""Passes, at least."""

NONE = 1e-9
"""Share of the largest singular value below which a combination is never reached."""


def cotangent_subspace(
    model: nn.Module, names: Sequence[str], images: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Combinations of positions that ∂ℓ/∂O of convolutions can be made of.

    Parameters
    ----------
    model : Module
        As `without_statistics` gives it.
    names : sequence of str
        The convolutions.
    images : tuple of int
        (C, H, W) of one image.

    Returns
    -------
    dict of str to Tensor
        Name → Q, (L, m), orthonormal columns; every filter's row of Ō, (D, L), is a combination
        of them. No columns where nothing of the output reaches the result; not all columns where
        there are more than filters.
    """
    model, generator = shared_copy(model), torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    wanted, drawn = list(names), 0
    while wanted:
        scale = SCALES[drawn % len(SCALES)]
        for name, rows in _derivatives(model, wanted, images, scale, generator).items():
            found[name] = torch.cat([found[name], rows]) if name in found else rows
        drawn += 1
        if drawn >= PASSES:
            wanted = [n for n in wanted if not _is_enough(found[n], len(found[n]) // drawn)]
    return {name: _basis(rows) for name, rows in found.items()}


def _is_enough(rows: Tensor, filters: int) -> bool:
    """Whether there are enough derivatives, or more combinations already than there are filters."""
    return len(rows) >= ENOUGH * rows.shape[1] or _basis(rows).shape[1] > filters


def _basis(rows: Tensor) -> Tensor:
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sizes > NONE * sizes[0]].mT.contiguous()


def _derivatives(
    model: nn.Module,
    names: Sequence[str],
    images: tuple[int, int, int],
    scale: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Name → (D, L), of a random result by random outputs of the convolutions; of norm 1."""
    outputs: dict[str, Tensor] = {}

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    def replaced(name: str, output: Tensor) -> Tensor:
        # Another value, and the same derivative.
        outputs[name] = output + (scale * random(output) - output).detach()
        return outputs[name]

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, o, n=name: replaced(n, o))
        for name in names
    ]
    device = next(model.parameters(), torch.empty(0)).device
    image = torch.rand((1, *images), generator=generator, dtype=torch.float64).to(device)
    try:
        with torch.enable_grad(), InFloat64():
            result = tensor_of(model(image.requires_grad_()))
            wanted = list(outputs.values())
            own = torch.autograd.grad(result, wanted, random(result), materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    rows = (each[0].flatten(1) for each in own)
    each = zip(outputs, rows, strict=True)
    return {name: row / row.norm().clamp(min=1e-300) for name, row in each}

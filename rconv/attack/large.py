"""The input of one convolution that is too large for a dense factorisation, without a matrix.

The equations are those of small layers, and known by their products alone: memory grows with the
pixels, not with their square. One image is a batch of one; see `rconv.equations.batch`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.solve import Known, at_least, gradient_errors
from rconv.equations.batch import BatchSystem
from rconv.linalg.iterative import solve_iterative
from rconv.linalg.solution import Solution


def matrix_free(known: Known, kind: str, bounds: tuple[float, float]) -> Solution:
    """Solve for the input of a convolution, image by image.

    Parameters
    ----------
    known : Known
        What is known of the convolution, for N images.
    kind : str
        "gradient", "weight" or "hybrid" (both).
    bounds : tuple of float
        Of the input.

    Returns
    -------
    Solution
        Value (N, C·H·W); see `solve_iterative` for what its rank and its condition say.
    """
    parts = [_one(known.select([i]), kind, bounds) for i in range(len(known.gradient))]
    return Solution.concatenate(parts)


def _one(known: Known, kind: str, bounds: tuple[float, float]) -> Solution:
    system = batch_system(known, kind, bounds)
    # Outputs that are all known determine the input exactly, if at all: as they are, they are
    # better conditioned than weighed by how well they are known.
    exact = kind == "weight" and bool((system.row_weight > 0).all())
    system = unweighed(system).scaled() if exact else system.whitened()
    solution = solve_iterative(system)
    least = {"gradient": known.noise, "weight": known.output_noise}
    smaller = torch.minimum(known.noise, known.output_noise)
    return at_least(replace(solution, value=solution.value[..., 0]), least.get(kind, smaller))


def batch_system(known: Known, kind: str, bounds: tuple[float, float]) -> BatchSystem:
    """The equations of one image.

    Parameters
    ----------
    known : Known
        Of this image.
    kind, bounds
        As `matrix_free` takes them.

    Returns
    -------
    BatchSystem
        Of one sample, not weighed yet.
    """
    d, kernel = known.gradient.shape[1], known.gradient.shape[3:]
    errors = gradient_errors(known)[0].expand(d * kernel.numel(), 1).reshape(d, 1, *kernel)
    weight = known.passed.weight
    if kind == "gradient":
        weight = torch.zeros_like(weight)
    return BatchSystem(
        known.stage,
        known.cotangent,
        known.gradient[0],
        known.output,
        weight,
        gradient_error=errors,
        output_error=known.passed.error.square().mean(dim=1).sqrt()[:, None, None, None],
        bounds=bounds,
        has_gradients=kind != "weight",
    )


def unweighed(system: BatchSystem) -> BatchSystem:
    """The same with every weight row as it is."""
    return system.weighted(1.0, _inverse(system.row_weight))


def _inverse(weight: Tensor) -> Tensor:
    return torch.where(weight > 0, 1 / torch.where(weight > 0, weight, 1.0), 0.0)

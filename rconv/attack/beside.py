"""The equations of one convolution as they are solved without a matrix, samples side by side."""

from dataclasses import replace

import torch

from rconv.attack.solve import Known, gradient_errors
from rconv.equations.batch import BatchSystem
from rconv.linalg.solution import root_mean_square


def side_by_side(known: Known, kind: str, bounds: tuple[float, float]) -> BatchSystem:
    """The equations of the samples of one batch; an image alone is a batch of one.

    Parameters
    ----------
    known : Known
        Output and cotangent of B samples, and one weight gradient, the sum over them.
    kind : str
        "gradient", "weight" or "hybrid" (both).
    bounds : tuple of float
        Of the input.

    Returns
    -------
    BatchSystem
        Not weighed yet.
    """
    worst = replace(
        known.passed.select([0]), cotangent_noise=known.passed.cotangent_noise.amax()[None]
    )
    errors = gradient_errors(replace(known, passed=worst))[0]
    d, kernel = known.gradient.shape[1], known.gradient.shape[3:]
    weight, output = known.passed.weight, known.output
    spreads = root_mean_square(known.passed.error)[:, None, None, None]
    return BatchSystem(
        known.stage,
        known.cotangent,
        known.gradient[0],
        output,
        torch.zeros_like(weight) if kind == "gradient" else weight,
        gradient_error=errors.expand(d * kernel.numel(), 1).reshape(d, 1, *kernel),
        output_error=spreads.expand_as(weight),
        bounds=bounds,
        has_gradients=kind != "weight",
    )

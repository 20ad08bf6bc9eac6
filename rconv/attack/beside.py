"""The equations of one convolution as they are solved without a matrix, samples side by side."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from rconv.attack.plan import LayerPlan
from rconv.attack.solve import Known, gradient_errors
from rconv.equations.batch import BatchSystem
from rconv.linalg.dense import solve_stacked
from rconv.linalg.solution import Solution, root_mean_square


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


@dataclass(frozen=True)
class Both:
    """Equations of both kinds of all samples together, factored at most once.

    Parameters
    ----------
    plan : LayerPlan
        The convolution.
    known : Known
        What is known of it.
    """

    plan: LayerPlan
    known: Known

    @cached_property
    def system(self) -> BatchSystem:
        """The equations, not weighed."""
        return side_by_side(self.known, "hybrid", self.plan.bounds)

    @property
    def precision(self) -> float:
        """Relative noise of the gradient."""
        return float(self.known.precision.amax())

    @cached_property
    def dense(self) -> Solution:
        """The solution of all samples as one, value (1, B·C·H·W, 1), with its exact rank."""
        return solve_stacked(self.system, self.precision, weigh="noise")

"""One kind of equations of a convolution, solved for its input, with the error to expect."""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.plan import LayerPlan
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.system import StackedSystem
from rconv.equations.windows import residue_classes
from rconv.linalg.dense import solve_stacked
from rconv.linalg.equations import DenseRows
from rconv.linalg.normal import independent, least_squares
from rconv.linalg.solution import Solution, root_mean_square
from rconv.model.geometry import Stage


def by_gradient(
    stage: Stage,
    passed: Passed,
    weight_gradient: Tensor,
    precision: Tensor,
    spread: Tensor | None = None,
) -> Solution:
    """Gradient constraints: one matrix for all channels, and a block of it per residue class.

    `spread`, shaped as the weight gradient, is each entry's own deviation, if that is known.
    """
    g, parts, sizes = stage.geometry, [], []
    noise = torch.hypot(precision, passed.cotangent_noise)
    classes = residue_classes(g)
    for block in classes:
        rhs = gradient_rhs(weight_gradient, block[0])
        matrix = gradient_matrix(passed.cotangent, g, block)
        deviation = (noise * root_mean_square(rhs))[:, None, None]
        rows = DenseRows(matrix, rhs, deviation)
        if spread is not None:
            common = (passed.cotangent_noise * root_mean_square(rhs))[:, None, None]
            own = torch.hypot(gradient_rhs(spread, block[0]), common)
            rows = DenseRows(matrix, rhs, own).whitened()
        parts.append(least_squares(rows, precision))
        sizes.append(rhs.flatten(1).norm(dim=1))
    solution = independent(parts, sizes)
    value = weight_gradient.new_zeros(len(weight_gradient), g.pixels, g.input[0])
    value[:, torch.cat([pixels for _, pixels in classes])] = solution.value
    solution = replace(solution, value=value.mT.flatten(1), rank=solution.rank * g.input[0])
    return _at_least(solution, noise)


def by_weight(plan: LayerPlan, passed: Passed, noise: Tensor) -> Solution:
    """Weight constraints that determine the input alone, factored with the model."""
    rhs = _weight_rhs(plan.stage, passed).flatten(1)
    rows = plan.system.rows(rhs, noise * root_mean_square(rhs))
    solution = plan.system.solve(rows, noise)
    return _at_least(replace(solution, value=solution.value.flatten(1)), noise)


def stacked(
    stage: Stage,
    passed: Passed,
    weight_gradient: Tensor,
    precision: Tensor,
    outputs: Tensor,
    gradients: bool = True,
    spread: Tensor | None = None,
) -> Solution:
    """Weight constraints where the output is known, and gradient constraints if asked for.

    `outputs` (N,) is the `output_noise`; `spread`, shaped as the weight gradient, each entry's own
    deviation, if that is known.
    """
    matrix = gradient_matrix(passed.cotangent, stage.geometry)
    rhs = gradient_rhs(weight_gradient)
    noise = torch.hypot(precision, passed.cotangent_noise)
    gradient_errors = (noise * root_mean_square(rhs))[:, None, None]
    if spread is not None:
        common = passed.cotangent_noise * root_mean_square(rhs)
        own = gradient_rhs(spread).square().mean(dim=2, keepdim=True).sqrt()
        gradient_errors = torch.hypot(own, common[:, None, None])
    output_errors = root_mean_square(passed.error)
    least = torch.minimum(noise, outputs) if gradients else outputs
    if not gradients:
        matrix, rhs, gradient_errors = matrix[:, :0], rhs[:, :0], gradient_errors[:, :1]
    output, parts = _weight_rhs(stage, passed), []
    for i, errors in enumerate(zip(gradient_errors, output_errors, strict=True)):
        system = StackedSystem(stage, matrix[i], rhs[i], output[i], passed.weight[i], *errors)
        parts.append(solve_stacked(system, float(precision[i]), weigh="noise"))
    solution = Solution.concatenate(parts)
    return _at_least(replace(solution, value=solution.value.flatten(1)), least)


def _at_least(solution: Solution, least: Tensor) -> Solution:
    """The solution, its error no smaller than the noise of what it is made of.

    Errors that are not independent do not average out.
    """
    error = solution.error.nan_to_num(nan=1.0, posinf=1.0).maximum(least)
    return replace(solution, error=error.clamp(max=1.0))


def output_noise(stage: Stage, passed: Passed) -> Tensor:
    """(N,): relative error of O - b where it is known, both as root mean squares; 1 for nowhere."""
    used = passed.weight > 0
    spread = passed.error[..., None, None] / torch.where(used, passed.weight, 1.0) * used
    size = (_weight_rhs(stage, passed) * used).flatten(1).norm(dim=1)
    noise = spread.flatten(1).norm(dim=1) / size
    return noise.nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0)


def _weight_rhs(stage: Stage, passed: Passed) -> Tensor:
    return passed.value if stage.bias is None else passed.value - stage.bias[:, None, None]

"""One kind of equations of a convolution, solved for its input, with the error to expect."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.plan import LayerPlan
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.system import StackedSystem
from rconv.equations.windows import residue_classes
from rconv.linalg.dense import solve_stacked
from rconv.linalg.normal import independent, least_squares
from rconv.linalg.solution import Solution, root_mean_square
from rconv.model.geometry import Stage


@dataclass(frozen=True)
class Solved:
    """The input of a convolution for N images, and the error to expect.

    Parameters
    ----------
    solution : Solution
        With value (N, C·H·W).
    error : Tensor
        (N,), relative error of the value, both as root mean squares, that the noise of the
        equations leads one to expect; in [0, 1].
    """

    solution: Solution
    error: Tensor

    @staticmethod
    def concatenate(parts: list["Solved"]) -> "Solved":
        """Several groups of images, one after the other."""
        solution = Solution.concatenate([part.solution for part in parts])
        return Solved(solution, torch.cat([part.error for part in parts]))

    def select(self, index: Tensor) -> "Solved":
        """Some of the images."""
        return Solved(self.solution.select(index), self.error[index])

    def replace(self, where: int, other: "Solved") -> "Solved":
        """These, with the image at `where` taken from `other`."""
        error = self.error.clone()
        error[where] = other.error
        return Solved(self.solution.replace(where, other.solution), error)


def by_gradient(stage: Stage, passed: Passed, weight_gradient: Tensor, precision: Tensor) -> Solved:
    """Gradient constraints: one matrix for all channels, and a block of it per residue class."""
    g, parts, sizes = stage.geometry, [], []
    noise = torch.hypot(precision, passed.cotangent_noise)
    classes = residue_classes(g)
    for block in classes:
        rhs = gradient_rhs(weight_gradient, block[0])
        matrix = gradient_matrix(passed.cotangent, g, block)
        parts.append(least_squares(matrix, rhs, precision))
        sizes.append(rhs.flatten(1).norm(dim=1))
    solution = independent(parts, sizes)
    value = weight_gradient.new_zeros(len(weight_gradient), g.pixels, g.input[0])
    value[:, torch.cat([pixels for _, pixels in classes])] = solution.value
    solution = replace(solution, value=value.mT.flatten(1), rank=solution.rank * g.input[0])
    return _solved(solution, solution.amplification * noise, noise)


def by_weight(plan: LayerPlan, passed: Passed, noise: Tensor) -> Solved:
    """Weight constraints that determine the input alone, factored with the model."""
    rhs = _weight_rhs(plan.stage, passed).flatten(1)
    solution = plan.system.solve(rhs, noise)
    return _solved(solution, solution.amplification * noise, noise)


def stacked(
    stage: Stage,
    passed: Passed,
    weight_gradient: Tensor,
    precision: Tensor,
    outputs: Tensor,
    gradients: bool = True,
) -> Solved:
    """Weight constraints where the output is known, and gradient constraints if asked for.

    `outputs` (N,) is the `output_noise`.
    """
    matrix = gradient_matrix(passed.cotangent, stage.geometry)
    rhs = gradient_rhs(weight_gradient)
    if not gradients:
        matrix, rhs = matrix[:, :0], rhs[:, :0]
    noise = torch.hypot(precision, passed.cotangent_noise)
    output, parts = _weight_rhs(stage, passed), []
    for i in range(len(noise)):
        system = StackedSystem(stage, matrix[i], rhs[i], output[i], passed.weight[i])
        own = float(noise[i] * root_mean_square(rhs[i : i + 1])[0]) if gradients else 0.0
        system, error = system.whitened(own, float(root_mean_square(passed.error[i : i + 1])))
        solution = solve_stacked(system, float(precision[i]), scaled=False)
        size = system.size()
        relative = error / size if size > 0 else 1.0
        least = torch.minimum(noise, outputs)[i : i + 1] if gradients else outputs[i : i + 1]
        parts.append(_solved(solution, solution.amplification * relative, least))
    return Solved.concatenate(parts)


def _solved(solution: Solution, error: Tensor, least: Tensor) -> Solved:
    """A solution and its error, which is no smaller than the noise of what it is made of.

    Errors that are not independent do not average out.
    """
    error = error.nan_to_num(nan=1.0, posinf=1.0).maximum(least)
    return Solved(solution, error.clamp(max=1.0))


def output_noise(stage: Stage, passed: Passed) -> Tensor:
    """(N,): relative error of O - b where it is known, both as root mean squares; 1 for nowhere."""
    used = passed.weight > 0
    spread = passed.error[..., None, None] / torch.where(used, passed.weight, 1.0) * used
    size = (_weight_rhs(stage, passed) * used).flatten(1).norm(dim=1)
    noise = spread.flatten(1).norm(dim=1) / size
    return noise.nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0)


def _weight_rhs(stage: Stage, passed: Passed) -> Tensor:
    return passed.value if stage.bias is None else passed.value - stage.bias[:, None, None]

"""The input of one convolution, from everything the attacker knows about it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.system import StackedSystem
from rconv.equations.windows import residue_classes
from rconv.linalg.dense import solve_stacked
from rconv.linalg.normal import independent, least_squares
from rconv.linalg.solution import Solution, root_mean_square
from rconv.model.geometry import Stage

ERROR_LIMIT = 1e-7
MILD = 2.0
NOISY = 1e-6
"""`auto` takes hybrid constraints where the expected relative error of the layer's input passes
ERROR_LIMIT and the equations amplify what comes from above by more than MILD, and wherever it
passes NOISY: there every equation helps, unless all is lost above."""


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


def solve_layer(
    plan: LayerPlan,
    passed: Passed,
    weight_gradient: Tensor,
    precision: Tensor,
    *,
    frugal: bool = False,
) -> tuple[Solved, LayerReport]:
    """Solve for the input of a convolution.

    With `auto`, the cheapest kind that may suffice is tried first, then hybrid for the images
    where it falls short of rank or amplifies the noise; the better of the two answers is kept.

    Parameters
    ----------
    plan : LayerPlan
        The convolution, and the equations that it uses.
    passed : Passed
        Its output and the output's cotangent.
    weight_gradient : Tensor
        ∂ℓ/∂W, (N, D, C, kh, kw).
    precision : Tensor
        (N,), relative error of the weight gradient, both as root mean squares.
    frugal : bool
        With `auto`, keep what was tried first.

    Returns
    -------
    Solved
        The layer's input, (N, C·H·W).
    LayerReport
        How well it is determined.
    """
    known = (passed.weight > 0).flatten(1).all(dim=1).tolist()
    noise = _output_noise(plan.stage, passed)
    kinds = [plan.cheapest(k, float(n)) for k, n in zip(known, noise, strict=True)]
    by_model = [k and kind == "weight" and plan.system is not None
                for k, kind in zip(known, kinds, strict=True)]  # fmt: skip
    order, parts = [], []
    for kind, sparse, where in _groups(kinds, by_model, passed.cotangent.device):
        own, gradient, told = passed.select(where), weight_gradient[where], precision[where]
        if kind == "gradient":
            parts.append(_by_gradient(plan.stage, own, gradient, told))
        elif sparse:
            parts.append(_by_weight(plan, own, noise[where]))
        else:
            parts.append(_stacked(plan.stage, own, gradient, told, gradients=kind == "hybrid"))
        order.append(where)
    solved = Solved.concatenate(parts).select(torch.cat(order).argsort())
    if plan.kind == "auto" and plan.affordable and not frugal:
        for i in _unsure(plan.stage, solved, kinds, noise):
            other = _stacked(plan.stage, passed.select([i]), weight_gradient[[i]], precision[[i]])
            if _better(other, solved, i):
                solved, kinds[i] = solved.replace(i, other), "hybrid"
    return solved, _report(plan.stage, solved.solution, passed, kinds)


def _groups(
    kinds: list[str], by_model: list[bool], device: torch.device
) -> Iterator[tuple[str, bool, Tensor]]:
    """Images that are solved in the same way: the kind of equations, and their indices."""
    keys = list(zip(kinds, by_model, strict=True))
    for key in dict.fromkeys(keys):
        where = [i for i, own in enumerate(keys) if own == key]
        yield *key, torch.tensor(where, device=device)


def _unsure(stage: Stage, solved: Solved, kinds: list[str], noise: Tensor) -> list[int]:
    """Images short of rank, or whose equations amplify the noise too much, not yet hybrid."""
    error, growth = solved.error, solved.error / noise.clamp(min=1e-300)
    unsure = (error > NOISY) & (noise < 1)
    unsure |= (error > ERROR_LIMIT) & (growth > MILD)
    unsure |= solved.solution.rank < stage.geometry.unknowns
    return [i for i in unsure.nonzero()[:, 0].tolist() if kinds[i] != "hybrid"]


def _better(other: Solved, solved: Solved, i: int) -> bool:
    """Whether the answer to image i has more rank, or as much and the smaller error."""
    own, new = int(solved.solution.rank[i]), int(other.solution.rank[0])
    return new > own or (new == own and bool(other.error[0] < solved.error[i]))


def _by_gradient(
    stage: Stage, passed: Passed, weight_gradient: Tensor, precision: Tensor
) -> Solved:
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


def _by_weight(plan: LayerPlan, passed: Passed, noise: Tensor) -> Solved:
    """Weight constraints that determine the input alone, factored with the model."""
    rhs = _weight_rhs(plan.stage, passed).flatten(1)
    solution = plan.system.solve(rhs, float(noise.max()))
    return _solved(solution, solution.amplification * noise, noise)


def _stacked(
    stage: Stage,
    passed: Passed,
    weight_gradient: Tensor,
    precision: Tensor,
    gradients: bool = True,
) -> Solved:
    """Weight constraints where the output is known, and gradient constraints if asked for."""
    matrix = gradient_matrix(passed.cotangent, stage.geometry)
    rhs = gradient_rhs(weight_gradient)
    if not gradients:
        matrix, rhs = matrix[:, :0], rhs[:, :0]
    noise = torch.hypot(precision, passed.cotangent_noise)
    output, parts, outputs = _weight_rhs(stage, passed), [], _output_noise(stage, passed)
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


def _output_noise(stage: Stage, passed: Passed) -> Tensor:
    """(N,): relative error of O - b where it is known, both as root mean squares; 1 for nowhere."""
    used = passed.weight > 0
    spread = passed.error[..., None, None] / torch.where(used, passed.weight, 1.0) * used
    size = (_weight_rhs(stage, passed) * used).flatten(1).norm(dim=1)
    noise = spread.flatten(1).norm(dim=1) / size
    return noise.nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0)


def _weight_rhs(stage: Stage, passed: Passed) -> Tensor:
    return passed.value if stage.bias is None else passed.value - stage.bias[:, None, None]


def _report(stage: Stage, solution: Solution, passed: Passed, kinds: list[str]) -> LayerReport:
    g = stage.geometry
    by_gradient = torch.tensor([kind != "weight" for kind in kinds], device=solution.rank.device)
    by_weight = torch.tensor([kind != "gradient" for kind in kinds], device=solution.rank.device)
    return LayerReport(
        stage.name,
        g.unknowns,
        by_gradient * g.gradient_rows,
        by_weight * (passed.weight > 0).flatten(1).sum(dim=1),
        solution.rank,
        solution.condition,
        solution.residual,
        tuple(kinds),
    )

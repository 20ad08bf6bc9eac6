"""The input of one convolution, from everything the attacker knows about it."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.report import LayerReport
from rconv.equations.gradient import gradient_matrix, gradient_rhs
from rconv.equations.system import StackedSystem
from rconv.equations.windows import residue_classes
from rconv.linalg import dense
from rconv.linalg.dense import solve_stacked
from rconv.linalg.normal import independent, least_squares
from rconv.linalg.solution import Solution
from rconv.linalg.sparse import SparseSystem
from rconv.model.geometry import Stage

ERROR_LIMIT = 1e-7
MILD = 2.0
NOISY = 1e-6
"""`auto` takes hybrid constraints where the expected relative error of the layer's input passes
ERROR_LIMIT and the equations amplify what comes from above by more than MILD, and wherever it
passes NOISY: there every equation helps, unless all is lost above."""


def solve_layer(
    stage: Stage,
    choice: str,
    system: SparseSystem | None,
    passed: Passed,
    weight_gradient: Tensor,
    noise: Tensor,
    precision: float,
) -> tuple[Solution, LayerReport]:
    """Solve for the input of a convolution.

    Parameters
    ----------
    stage : the convolution.
    choice : "gradient", "weight", "hybrid" or "auto": the cheapest kind that may suffice,
        then hybrid for the images where it falls short of rank or amplifies the noise.
    system : the model's factored weight constraints, or None.
    passed : the convolution's output and its cotangent.
    weight_gradient : ∂ℓ/∂W, (N, D, C, kh, kw).
    noise : (N,), expected relative error of what comes from above and of this gradient.
    precision : relative rounding error of the gradients.

    Returns
    -------
    Solution with value (N, C·H·W), and its report.
    """
    known = (passed.weight > 0).flatten(1).all(dim=1)
    by_model = known if system is not None else torch.zeros_like(known)
    kinds = [_cheapest(stage, m) if choice == "auto" else choice for m in by_model.tolist()]
    order, parts = [], []
    for kind, where in _groups(kinds, by_model):
        own, gradient = passed.select(where), weight_gradient[where]
        if kind == "gradient":
            parts.append(_by_gradient(stage, own, gradient, precision))
        elif kind == "weight" and by_model[where[0]]:
            parts.append(system.solve(_weight_rhs(stage, own).flatten(1)))
        else:
            parts.append(_stacked(stage, own, gradient, precision, gradients=kind == "hybrid"))
        order.append(where)
    solution = Solution.concatenate(parts).select(torch.cat(order).argsort())
    if choice == "auto" and stage.geometry.unknowns <= dense.MAX_UNKNOWNS:
        for i in _unsure(stage, solution, kinds, noise):
            better = _stacked(stage, passed.select([i]), weight_gradient[[i]], precision)
            solution = solution.replace(i, better)
            kinds[i] = "hybrid"
    return solution, _report(stage, solution, passed, kinds)


def _cheapest(stage: Stage, by_model: bool) -> str:
    """Kind of equations that `auto` tries first for one image."""
    if by_model:
        return "weight"
    g = stage.geometry
    enough = g.gradient_rows >= g.unknowns or g.unknowns > dense.MAX_UNKNOWNS
    return "gradient" if enough else "hybrid"


def _groups(kinds: list[str], by_model: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Images that are solved in the same way: the kind of equations, and their indices."""
    keys = list(zip(kinds, by_model.tolist(), strict=True))
    for key in dict.fromkeys(keys):
        where = [i for i, own in enumerate(keys) if own == key]
        yield key[0], torch.tensor(where, device=by_model.device)


def _unsure(stage: Stage, solution: Solution, kinds: list[str], noise: Tensor) -> list[int]:
    """Images short of rank, or whose equations amplify the noise too much, not yet hybrid."""
    expected = solution.amplification * noise
    unsure = (expected > NOISY) & (noise < 1)
    unsure |= (expected > ERROR_LIMIT) & (solution.amplification > MILD)
    unsure |= solution.rank < stage.geometry.unknowns
    return [i for i in unsure.nonzero()[:, 0].tolist() if kinds[i] != "hybrid"]


def _by_gradient(
    stage: Stage, passed: Passed, weight_gradient: Tensor, precision: float
) -> Solution:
    """Gradient constraints: one matrix for all channels, and a block of it per residue class."""
    g, parts, sizes = stage.geometry, [], []
    classes = residue_classes(g)
    for block in classes:
        rhs = gradient_rhs(weight_gradient, block[0])
        parts.append(least_squares(gradient_matrix(passed.cotangent, g, block), rhs, precision))
        sizes.append(rhs.flatten(1).norm(dim=1))
    solution = independent(parts, sizes)
    value = weight_gradient.new_zeros(len(weight_gradient), g.pixels, g.input[0])
    value[:, torch.cat([pixels for _, pixels in classes])] = solution.value
    return replace(solution, value=value.mT.flatten(1), rank=solution.rank * g.input[0])


def _stacked(
    stage: Stage, passed: Passed, weight_gradient: Tensor, precision: float, gradients: bool = True
) -> Solution:
    """Weight constraints where the output is known, and gradient constraints if asked for."""
    matrix = gradient_matrix(passed.cotangent, stage.geometry)
    rhs = gradient_rhs(weight_gradient)
    if not gradients:
        matrix, rhs = matrix[:, :0], rhs[:, :0]
    output = _weight_rhs(stage, passed)
    solutions = [
        solve_stacked(StackedSystem(stage, *equations), precision)
        for equations in zip(matrix, rhs, output, passed.weight, strict=True)
    ]
    return Solution.concatenate(solutions)


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

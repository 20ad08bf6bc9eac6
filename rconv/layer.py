"""The input of one convolution, from everything the attacker knows about it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.constraints import gradient_matrix, gradient_rhs
from rconv.geometry import Stage
from rconv.hybrid import MAX_UNKNOWNS, StackedSystem, solve_stacked
from rconv.propagation import Passed
from rconv.solvers import Solution, SparseSystem, least_squares

ERROR_LIMIT = 1e-7
MILD = 2.0
"""`auto` takes hybrid constraints where the expected relative error of the layer's input passes
ERROR_LIMIT and the equations amplify what comes from above by more than MILD."""


@dataclass(frozen=True)
class LayerReport:
    """How well one layer's input is determined, for N images.

    Attributes
    ----------
    name : the layer.
    unknowns : entries of its input.
    gradient_rows, weight_rows : (N,) equations of each kind that were used.
    rank : (N,), at most `unknowns`.
    condition : (N,), ratio of the extreme singular values that count (an estimate).
    residual : (N,), relative residual of the equations.
    constraints : N names of the kinds of equations that were used.
    """

    name: str
    unknowns: int
    gradient_rows: Tensor
    weight_rows: Tensor
    rank: Tensor
    condition: Tensor
    residual: Tensor
    constraints: tuple[str, ...]


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
    noise : (N,), expected relative error of what comes from above.
    precision : relative rounding error of the gradients.

    Returns
    -------
    Solution with value (N, C·H·W), and its report.
    """
    g = stage.geometry
    kind = _cheapest(stage, system, passed) if choice == "auto" else choice
    if kind == "gradient":
        solution = _by_gradient(stage, passed, weight_gradient, precision)
    elif kind == "weight" and system is not None and bool((passed.weight > 0).all()):
        solution = system.solve(_weight_rhs(stage, passed).flatten(1))
    else:
        solution = _stacked(stage, passed, weight_gradient, precision, gradient=kind == "hybrid")
    kinds = [kind] * len(noise)
    if choice == "auto" and kind != "hybrid" and g.unknowns <= MAX_UNKNOWNS:
        expected = solution.amplification * noise
        unsure = (expected > ERROR_LIMIT) & (solution.amplification > MILD)
        for i in (unsure | (solution.rank < g.unknowns)).nonzero()[:, 0].tolist():
            own = Passed(*(t[i : i + 1] for t in (passed.cotangent, passed.value, passed.weight)))
            better = _stacked(stage, own, weight_gradient[i : i + 1], precision)
            solution = solution.replace(i, better)
            kinds[i] = "hybrid"
    return solution, _report(stage, solution, passed, kinds)


def _cheapest(stage: Stage, system: SparseSystem | None, passed: Passed) -> str:
    if system is not None and bool((passed.weight > 0).all()):
        return "weight"
    g = stage.geometry
    return "gradient" if g.gradient_rows >= g.unknowns else "hybrid"


def _by_gradient(
    stage: Stage, passed: Passed, weight_gradient: Tensor, precision: float
) -> Solution:
    """Gradient constraints: every channel has the same matrix."""
    matrix = gradient_matrix(passed.cotangent, stage.geometry)
    solution = least_squares(matrix, gradient_rhs(weight_gradient), precision)
    rank = solution.rank * stage.geometry.input[0]
    return replace(solution, value=solution.value.mT.flatten(1), rank=rank)


def _stacked(
    stage: Stage, passed: Passed, weight_gradient: Tensor, precision: float, gradient: bool = True
) -> Solution:
    """Weight constraints where the output is known, and gradient constraints if asked for."""
    matrix = gradient_matrix(passed.cotangent, stage.geometry)
    rhs = gradient_rhs(weight_gradient)
    if not gradient:
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

"""The input of one convolution, from everything the attacker knows about it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rconv.attack.apart import by_signs_apart
from rconv.attack.backward import Passed
from rconv.attack.large import by_gradients, matrix_free
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.attack.signs import by_signs
from rconv.attack.solve import Known, by_weight, stacked
from rconv.linalg.solution import Solution
from rconv.model.geometry import Stage

ERROR_LIMIT = 2.5e-8
MILD = 2.0
NOISY = 1e-6
"""`auto` takes hybrid constraints where the expected relative error of the layer's input passes
ERROR_LIMIT and the equations amplify what comes from above by more than MILD, and wherever it
passes NOISY: there every equation helps, unless all is lost above."""


def solve_layer(
    plan: LayerPlan, known: Known, *, frugal: bool = False
) -> tuple[Solution, LayerReport]:
    """Solve for the input of a convolution.

    With `auto`, the cheapest kind that may suffice is tried first, then hybrid for the images
    where it falls short of rank or amplifies the noise; the better of the two answers is kept.
    What is short of rank all the same may be closed by the range of the input.

    Parameters
    ----------
    plan : LayerPlan
        The convolution, and the equations that it uses.
    known : Known
        What is known of it, for N images.
    frugal : bool
        With `auto`, keep what was tried first.

    Returns
    -------
    Solution
        The layer's input, value (N, C·H·W), and its expected error.
    LayerReport
        How well it is determined.
    """
    noise = known.output_noise
    kinds, by_model = _cheapest(plan, known, noise)
    order, parts = [], []
    for kind, sparse, where in _groups(kinds, by_model, noise.device):
        own = known.select(where)
        if kind == "gradient":
            parts.append(by_gradients(own))
        elif not plan.affordable:
            parts.append(matrix_free(plan, own, kind))
        elif sparse:
            parts.append(by_weight(plan, own))
        else:
            parts.append(stacked(plan, own, gradients=kind == "hybrid"))
        order.append(where)
    solved = Solution.concatenate(parts).select(torch.cat(order).argsort())
    if plan.kind == "auto":
        unsure = is_unsure(solved, plan.stage.geometry.unknowns, noise) & known.some
        again = [i for i in unsure.nonzero()[:, 0].tolist() if kinds[i] != "hybrid"]
        if again and not frugal:
            others = _hybrid(plan, known.select(again)).split()
            for i, other in zip(again, others, strict=True):
                if is_better(other, solved, i):
                    solved, kinds[i] = solved.replace(i, other), "hybrid"
    solved, left = _closed(plan, known, solved)
    return solved, layer_report(plan.stage, solved, known.passed, kinds, left)


def _hybrid(plan: LayerPlan, known: Known) -> Solution:
    return stacked(plan, known) if plan.affordable else matrix_free(plan, known, "hybrid")


def _closed(
    plan: LayerPlan, known: Known, solved: Solution
) -> tuple[Solution, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What the range of the input adds, and what it leaves: the end of the report's fields."""
    closed, guess = torch.zeros_like(solved.rank), torch.zeros_like(solved.value)
    short = solved.rank < plan.stage.geometry.unknowns
    if not short.any():
        return solved, (closed, guess, solved.value, solved.value)
    low, high = (torch.where(short[:, None], end, solved.value) for end in plan.bounds)
    if plan.kind == "auto" and plan.affordable and plan.signs:
        for i in short.nonzero()[:, 0].tolist():
            own = known.select([i]), solved.select([i])
            done = by_signs(plan, *own) if known.some[i] else by_signs_apart(plan, *own)
            solved = solved.replace(i, done.solution)
            closed[i], guess[i], low[i], high[i] = done.closed, done.guess, done.low, done.high
    return solved, (closed, guess, low, high)


def _cheapest(plan: LayerPlan, known: Known, noise: Tensor) -> tuple[list[str], list[bool]]:
    """Of each image the kind to try first, and whether it is solved by the model's own factors."""
    told = (known.passed.weight > 0).flatten(1).all(dim=1).tolist()
    each = zip(told, known.some.tolist(), noise.tolist(), strict=True)
    # Where no output is known, as below a sum, there is no choice.
    kinds = [plan.cheapest(whole, own_noise) if own or plan.kind != "auto" else "gradient"
             for whole, own, own_noise in each]  # fmt: skip
    by_model = [k and kind == "weight" and plan.affordable and plan.system is not None
                for k, kind in zip(told, kinds, strict=True)]  # fmt: skip
    return kinds, by_model


def _groups(
    kinds: list[str], by_model: list[bool], device: torch.device
) -> Iterator[tuple[str, bool, Tensor]]:
    """Images that are solved in the same way: the kind of equations, and their indices."""
    keys = list(zip(kinds, by_model, strict=True))
    for key in dict.fromkeys(keys):
        where = [i for i, own in enumerate(keys) if own == key]
        yield *key, torch.tensor(where, device=device)


def is_unsure(solved: Solution, unknowns: int, noise: Tensor) -> Tensor:
    """Which images are short of rank, or have equations that amplify the noise too much.

    Parameters
    ----------
    solved : Solution
        Of N images.
    unknowns : int
        Of each.
    noise : Tensor
        (N,), relative, of what other equations there are.

    Returns
    -------
    Tensor
        (N,), bool.
    """
    error, growth = solved.error, solved.error / noise.clamp(min=1e-300)
    unsure = (error > NOISY) & (noise < 1)
    unsure |= (error > ERROR_LIMIT) & (growth > MILD)
    return unsure | (solved.rank < unknowns)


def is_better(other: Solution, solved: Solution, i: int) -> bool:
    """Whether the answer to image i has more rank, or as much and the smaller error."""
    own, new = int(solved.rank[i]), int(other.rank[0])
    return new > own or (new == own and bool(other.error[0] < solved.error[i]))


def layer_report(
    stage: Stage,
    solution: Solution,
    passed: Passed,
    kinds: list[str],
    left: tuple[Tensor, ...],
) -> LayerReport:
    """What is reported of a layer.

    Parameters
    ----------
    stage : Stage
        The convolution.
    solution : Solution
        Of N images.
    passed : Passed
        What was known of its output.
    kinds : list of str
        N names of the equations that were used.
    left : tuple of Tensor
        The report's last fields, from `signs` on.

    Returns
    -------
    LayerReport
    """
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
        *left,
    )

"""The input of one convolution that is too large for a dense factorisation, without a matrix.

The equations are those of small layers, and known by their products alone: memory grows with the
pixels, not with their square. One image is a batch of one; see `rconv.equations.batch`.

Of 3,072 unknowns by both kinds of equations, with a condition of 10, LSMR needs 0.25 s and the
dense factorisation 1.0 s, of 9,408 they need 0.7 s and 10 s. But the exact rank is told by the
latter, and signs and priors need it: it stays up to `rconv.linalg.dense.MAX_UNKNOWNS`.
"""

from dataclasses import replace

import torch

from rconv.attack.beside import side_by_side
from rconv.attack.plan import LayerPlan
from rconv.attack.solve import Known, at_least, by_gradient, by_weight
from rconv.equations.windows import residue_classes, tiles
from rconv.linalg.equations import FREE
from rconv.linalg.iterative import solve_iterative
from rconv.linalg.solution import Solution
from rconv.model.geometry import Geometry

CLASS = 4_096
"""Pixels of a residue class up to which its gradient constraints are factored. One of 3,136 takes
0.5 s and 80 MB, and its equations serve all channels; LSMR would take 20 s for 160 of them."""


def by_gradients(known: Known) -> Solution:
    """Gradient constraints, factored where their residue classes are small enough.

    Parameters
    ----------
    known : Known
        What is known of the convolution, for N images.

    Returns
    -------
    Solution
        Value (N, C·H·W).
    """
    return by_gradient(known) if classes_fit(known.stage.geometry) else _each(known, "gradient")


def classes_fit(geometry: Geometry) -> bool:
    """Whether no residue class has more than `CLASS` pixels."""
    if tiles(geometry):
        return geometry.positions <= CLASS
    return max(len(pixels) for _, pixels in residue_classes(geometry)) <= CLASS


def matrix_free(plan: LayerPlan, known: Known, kind: str) -> Solution:
    """Solve for the input of a convolution, image by image.

    Weight constraints in which LSMR does not converge, as a square system may be, are factored
    where the factors fit.

    Parameters
    ----------
    plan : LayerPlan
        The convolution.
    known : Known
        What is known of it, for N images.
    kind : str
        "weight", or "hybrid" for gradient constraints as well.

    Returns
    -------
    Solution
        Value (N, C·H·W); see `solve_iterative` for what its rank and its condition say.
    """
    solved = _each(known, kind, plan.bounds)
    told = (known.passed.weight > 0).flatten(1).all(dim=1)
    short = (solved.rank < plan.stage.geometry.unknowns) & told
    if kind == "weight" and short.any() and plan.system is not None:
        for i in short.nonzero()[:, 0].tolist():
            solved = solved.replace(i, by_weight(plan, known.select([i])))
    return solved


def _each(known: Known, kind: str, bounds: tuple[float, float] = FREE) -> Solution:
    parts = [_one(known.select([i]), kind, bounds) for i in range(len(known.gradient))]
    return Solution.concatenate(parts)


def _one(known: Known, kind: str, bounds: tuple[float, float]) -> Solution:
    system = side_by_side(known, kind, bounds)
    # Outputs that are all known determine the input exactly, if at all: as they are, they are
    # better conditioned than weighed by how well they are known.
    exact = kind == "weight" and bool((system.row_weight > 0).all())
    if exact:
        system = system.weighted(1.0, 1 / system.row_weight).scaled()
    else:
        system = system.whitened()
    solution = solve_iterative(system)
    least = {"gradient": known.noise, "weight": known.output_noise}
    smaller = torch.minimum(known.noise, known.output_noise)
    return at_least(replace(solution, value=solution.value[..., 0]), least.get(kind, smaller))

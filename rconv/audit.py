"""Does this architecture leak? The plan's verdict, from the model alone and without data."""

from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor, nn

from rconv.attack.plan import LayerPlan, make_plan
from rconv.equations.gradient import gradient_matrix
from rconv.equations.system import StackedSystem
from rconv.equations.windows import window_index
from rconv.linalg.dense import MAX_UNKNOWNS, solve_stacked
from rconv.model.ends import Head
from rconv.model.geometry import Geometry, Stage
from rconv.model.read import read

EPS = torch.finfo(torch.float64).eps

GRADIENT = "leaks by gradient constraints"
WEIGHT = "leaks by weight constraints"
HYBRID = "needs hybrid"
NOT_UNIQUE = "does not leak uniquely"
TOO_LARGE = "too large to tell"


@dataclass(frozen=True)
class LayerAudit:
    """What the equations of one layer can determine, for generic gradients.

    Parameters
    ----------
    name : str
        The layer.
    unknowns : int
        Entries of its input, C·H·W.
    counted : int
        Gradient equations as the paper counts them, C·D·kh·kw.
    gradient_rank : int
        Rank of the gradient constraints for a random Ō.
    weight_rows : int
        Weight equations that are available: all, or the active ones of a ReLU.
    hybrid_rank : int | None
        Rank of both kinds together; None where it is too large to compute.
    verdict : str
        What follows.
    """

    name: str
    unknowns: int
    counted: int
    gradient_rank: int
    weight_rows: int
    hybrid_rank: int | None
    verdict: str


def audit(
    model: nn.Sequential, input_shape: tuple[int, int, int], *, active: float = 0.5, seed: int = 0
) -> list[LayerAudit]:
    """Judge every layer of a model, in the order of the attack: head first.

    Parameters
    ----------
    model : nn.Sequential
        A Sequential as the attack takes it.
    input_shape : tuple[int, int, int]
        (C, H, W) of one image.
    active : float
        Share of ReLU outputs that are taken to be positive, in (0, 1].
    seed : int
        Of the random Ō and of the random active outputs.

    Returns
    -------
    list[LayerAudit]
        One per layer.

    Raises
    ------
    UnsupportedModelError
        A layer that the attack cannot pass.
    ValueError
        `active` out of range.
    """
    if not isinstance(active, Real) or not 0 < active <= 1:
        raise ValueError(f"active must be a share in (0, 1], got {active!r}")
    network = read(model, input_shape).required_chain("the audit")
    generator = torch.Generator().manual_seed(seed)
    layers = [_judge_head(network.head)]
    for plan in reversed(make_plan(network, "auto")):
        layers.append(_judge(plan, active, generator))
    return layers


def overall(layers: list[LayerAudit]) -> str:
    """The verdict on the whole model: that of its weakest link."""
    verdicts = {layer.verdict for layer in layers}
    return next((v for v in (NOT_UNIQUE, TOO_LARGE, HYBRID) if v in verdicts), "leaks")


def gradient_rank(geometry: Geometry, generator: torch.Generator | None = None) -> int:
    """Generic rank of the gradient constraints of one input channel, at most H·W.

    The rank for a Gaussian random Ō, which is the largest that any Ō can have.
    """
    cotangent = torch.randn(1, *geometry.output, generator=generator, dtype=torch.float64)
    return _rank(gradient_matrix(cotangent, geometry)[0])


def class_bound(geometry: Geometry) -> int:
    """Upper bound of `gradient_rank` that counts per residue class instead of over all.

    With stride s a pixel meets only the kernel offsets of its own residue class mod s, so each
    class has equations of its own: Σ min(pixels in the class, D · offsets in the class).
    """
    per_axis = []
    for axis in (0, 1):
        stride = geometry.stride[axis]
        pixels = (torch.arange(geometry.input[1 + axis]) + geometry.padding[axis]) % stride
        offsets = torch.arange(geometry.kernel[axis]) * geometry.dilation[axis] % stride
        counts = (own.bincount(minlength=stride).tolist() for own in (pixels, offsets))
        per_axis.append(list(zip(*counts, strict=True)))
    filters = geometry.output[0]
    return sum(
        min(rows * columns, filters * above * across)
        for rows, above in per_axis[0]
        for columns, across in per_axis[1]
    )


def filters_needed(geometry: Geometry) -> int:
    """Fewest filters with which gradient constraints alone tell a layer's input, generically.

    Parameters
    ----------
    geometry : Geometry
        The convolution's shapes; its own number of filters does not matter.

    Raises
    ------
    ValueError
        No number of filters suffices, because no window covers some pixel.
    """
    if bool((window_index(geometry) == geometry.positions).all(dim=0).any()):
        raise ValueError("some pixel lies under no window: no number of filters tells it")
    filters = 1
    while True:
        wider = replace(geometry, output=(filters, *geometry.output[1:]))
        if class_bound(wider) == geometry.pixels and gradient_rank(wider) == geometry.pixels:
            return filters
        filters += 1


def _judge(plan: LayerPlan, active: float, generator: torch.Generator) -> LayerAudit:
    stage, g = plan.stage, plan.stage.geometry
    rank = gradient_rank(g, generator) * g.input[0]
    known = torch.ones(g.output, dtype=torch.float64)
    if stage.activation.flat:
        known = (torch.rand(g.output, generator=generator) < active).double()
    rows = int(known.sum())
    by_weight = (plan.weight_first or plan.weight_next) and plan.system is not None
    hybrid: int | None = g.unknowns
    if rank < g.unknowns and not by_weight:
        hybrid = _hybrid_rank(stage, known, rank, generator)
    if rank == g.unknowns and not by_weight:
        verdict = GRADIENT
    elif by_weight:
        verdict = WEIGHT
    elif hybrid is None:
        verdict = TOO_LARGE
    else:
        verdict = HYBRID if hybrid == g.unknowns else NOT_UNIQUE
    return LayerAudit(stage.name, g.unknowns, g.gradient_rows, rank, rows, hybrid, verdict)


def _hybrid_rank(
    stage: Stage, known: Tensor, gradient_rank: int, generator: torch.Generator
) -> int | None:
    """Rank of both kinds of equations; ReLU outputs that are zero have Ō = 0 too."""
    g = stage.geometry
    if g.unknowns > MAX_UNKNOWNS:
        return None if gradient_rank + int(known.sum()) >= g.unknowns else gradient_rank
    cotangent = torch.randn(g.output, generator=generator, dtype=torch.float64) * known
    matrix = gradient_matrix(cotangent[None], g)[0]
    rhs = matrix.new_zeros(len(matrix), g.input[0])
    system = StackedSystem(stage, matrix, rhs, torch.zeros_like(known), known)
    return int(solve_stacked(system, EPS).rank)


def _rank(matrix: Tensor) -> int:
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram)
    return int((values > values[-1] * EPS * len(values)).sum())


def _judge_head(head: Head) -> LayerAudit:
    k, n = head.weight.shape
    return LayerAudit(head.name, n, k * n, n, 0, n, GRADIENT)

"""Maps that their equations leave open, closed by the equations of the convolution below.

A map X = a(conv(Z)) whose equations are short of rank has more of them: the gradients of the
convolution below it, which depend on the sides of X's kinks, and that X is made of Z. Both
convolutions with the activation between them are one block (`rconv.equations.block`), and its
unknown is Z. A kink, on whose side the derivative depends, is rounded off at first and sharpened
step by step, so that no entry is held on the wrong side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from rconv.attack.block_problem import BlockData, BlockProblem, OneMap
from rconv.attack.map_problem import MapProblem
from rconv.attack.plan import LayerPlan
from rconv.attack.report import TWO_LAYERS, LayerReport
from rconv.linalg.gauss_newton import gauss_newton
from rconv.linalg.solution import Solution, put, root_mean_square
from rconv.model.activations import Activation
from rconv.model.blocks import Block
from rconv.model.geometry import Stage
from rconv.model.nodes import Network

SOFTNESS, STEPS = (0.3, 0.1, 0.03, 0.01), 6
"""Width of a kink, relative to the standard deviation of the activation's input, and the
Gauss-Newton steps at each."""

MOST_UNKNOWNS, MOST_NOISE = 4_096, 1e-4
"""Unknowns and relative noise beyond which it is not tried: a minute, and sides that drown."""


class Softened(nn.Module):
    """ReLU or LeakyReLU with its kink rounded off.

    Parameters
    ----------
    slope : float
        Where the input is negative.
    width : float
        Of the kink.
    """

    def __init__(self, slope: float, width: float):
        super().__init__()
        self.slope, self.width = slope, width

    def forward(self, z: Tensor) -> Tensor:
        """Any shape."""
        soft = self.width * nn.functional.softplus(z / self.width)
        return self.slope * z + (1 - self.slope) * soft


class Elementwise(nn.Module):
    """A smooth activation, as it was read.

    Parameters
    ----------
    function : callable
        Of its input.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """Any shape."""
        return self.function(z)


def two_layers(lower: Stage, name: str, activation: nn.Module, upper: Stage) -> Block:
    """Two convolutions and what stands between them, as one block.

    Parameters
    ----------
    lower, upper : Stage
        The convolutions.
    name : str
        Of the activation.
    activation : Module
        Between them.
    """
    g = upper.geometry
    shape = g.input[0], g.output[0], g.kernel, g.stride, g.padding, g.dilation
    convolution = nn.Conv2d(*shape, bias=upper.bias is not None, dtype=torch.float64)
    convolution.weight = nn.Parameter(upper.weight, requires_grad=False)
    if upper.bias is not None:
        convolution.bias = nn.Parameter(upper.bias, requires_grad=False)
    own = lower.name, lower.weight, lower.bias, lower.activation, lower.geometry
    return Block(*own, layers=((name, activation), (upper.name, convolution)))


@dataclass(frozen=True)
class Passed:
    """A map that the backward pass has solved.

    Parameters
    ----------
    node : int
        The map.
    problem : MapProblem
        What it was solved from.
    solution : Solution
        Value (N, C·H·W).
    report : LayerReport
        How well it is determined.
    """

    node: int
    problem: MapProblem
    solution: Solution
    report: LayerReport


def closed_from_below(
    network: Network, data: Callable[[Stage], dict], passed: list[Passed]
) -> Passed | None:
    """The first map that its equations leave open, closed for the clients where this succeeds.

    Parameters
    ----------
    network : Network
        The model.
    data : callable
        Takes a block and returns what is observed of its gradients; see `BlockData`.
    passed : list of Passed
        All maps, from the head down. Those below an open one are estimates to start from.

    Returns
    -------
    Passed or None
        None where no client's map is closed.
    """
    solved = {own.node: own for own in passed}
    first = next((own for own in passed if bool((own.report.open > 0).any())), None)
    if first is None or not _is_tried(first.problem):
        return None
    lower, below = _convolution_below(network, first)
    if lower is None or below not in solved or lower.geometry.unknowns > MOST_UNKNOWNS:
        return None
    closed = False
    noise = first.problem.layers[0].cotangent.relative_std
    opened = first.report.open
    tried = (opened > 0) & (first.report.rank > 0) & (noise <= MOST_NOISE)
    for i in tried.nonzero()[:, 0].tolist():
        start = solved[below].solution.value[i]
        if bool(start.isfinite().all()):
            found = _solved(network, first, lower, data, i, start)
            if int(found.rank) == first.problem.unknowns:
                first, closed = _with(first, i, found), True
    return first if closed else None


def _is_tried(problem: MapProblem | BlockProblem) -> bool:
    """Whether the map is one sample's, and may be closed by more than its equations."""
    if not isinstance(problem, MapProblem) or problem.samples > 1 or len(problem.layers) > 1:
        return False
    plan = problem.layers[0].plan
    return plan.kind == "auto" and plan.signs


def _convolution_below(network: Network, map_: Passed) -> tuple[Stage | None, int]:
    """The convolution whose activation's output a map is, and the node of its input."""
    node = network.nodes[map_.node]
    if not isinstance(node.does, Activation):
        return None, -1
    (under,) = node.inputs
    lower, upper = network.nodes[under].does, map_.problem.layers[0].stage
    plain = all(_is_plain(stage) for stage in (lower, upper))
    alone = all(len(network.consumers[i]) == 1 for i in (under, map_.node))
    smooth = not node.does.kink or node.does.name in ("ReLU", "LeakyReLU")
    if not (plain and alone and smooth):
        return None, -1
    return lower, network.nodes[under].inputs[0]


def _is_plain(stage: object) -> bool:
    """Whether a node is a convolution whose gradients are those of its weights as they stand."""
    return isinstance(stage, Stage) and stage.linear and stage.groups == 1 and stage.scale is None


def _solved(
    network: Network, map_: Passed, lower: Stage, data: Callable[[Stage], dict], i: int, z: Tensor
) -> Solution:
    """Client i's map, value (1, n), from an estimate z of the input below; or of rank 0."""
    node, layer = network.nodes[map_.node], map_.problem.layers[0]
    does: Activation = node.does

    def block(activation: nn.Module) -> OneMap:
        own = two_layers(lower, node.name, activation, layer.stage)
        known = layer.output, layer.cotangent
        both = BlockData(LayerPlan(own), *known, **data(own))
        return BlockProblem(map_.node, (both,)).one(i)

    exact: nn.Module = Elementwise(does.function)
    if does.kink:
        slope = float(does.derivative(z.new_full((), -1.0)))
        exact = nn.LeakyReLU(slope)
        spread = float(lower.evaluate(z.reshape(1, *lower.geometry.input)).std())
        for softness in SOFTNESS:
            soft = block(Softened(slope, softness * spread))
            z = gauss_newton(partial(soft.linearised, scaled=False), z, most=STEPS).value
    found = block(exact).solve_from(z)
    if int(found.rank) < lower.geometry.unknowns:
        return replace(found, value=map_.solution.value[[i]], rank=0 * found.rank)
    maps = found.value.reshape(1, *lower.geometry.input)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(maps.shape, generator=generator, dtype=maps.dtype)
    moved = maps + noise * found.error * root_mean_square(maps)
    value, other = (does.function(lower.evaluate(x)).flatten(1) for x in (maps, moved))
    error = root_mean_square(other - value) / root_mean_square(value).clamp(min=1e-300)
    full = torch.full_like(found.rank, map_.problem.unknowns)
    return replace(found, value=value, rank=full, error=error.maximum(found.error))


def _with(map_: Passed, i: int, found: Solution) -> Passed:
    """The same with client i's answer."""
    own = map_.report
    new = {"rank": found.rank, "condition": found.condition, "residual": found.residual}
    new |= {"constraints": (TWO_LAYERS,), "signs": 0 * found.rank, "guess": 0 * found.value}
    new |= {"low": found.value, "high": found.value}
    changed = {name: put(getattr(own, name), i, value) for name, value in new.items()}
    return replace(map_, solution=map_.solution.replace(i, found), report=replace(own, **changed))

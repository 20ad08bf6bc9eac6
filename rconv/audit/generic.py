"""A network as the attack meets it, map by map, with random data in place of a client's.

Activations, the derivative by the head's input and the pixels are drawn; what the attack knows
when it comes to a map follows from its own backward pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.backward import BackwardState
from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.map_problem import MapProblem
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.audit.ranks import EPS, class_bound, matrix_rank
from rconv.equations.conv_gradient import gradient_matrix
from rconv.linalg.dense import determines
from rconv.linalg.system import FREE
from rconv.model.activations import Activation
from rconv.model.geometry import Stage
from rconv.model.heads import ConvEntry
from rconv.model.nodes import Network


class RandomProblem(MapProblem):
    """One map that convolutions take, with what the attack knows of it when it comes there."""

    @property
    def stages(self) -> list[Stage]:
        """The convolutions."""
        return [layer.stage for layer in self.layers]

    @property
    def weight_rows(self) -> int:
        """Weight constraints whose output is known, and known entries of the map."""
        entries = 0 if self.estimate is None else int((self.estimate.weight > 0).sum())
        return entries + sum(int((layer.output.weight > 0).sum()) for layer in self.layers)

    @property
    def known(self) -> bool:
        """Whether the maps above determine every entry."""
        return self.estimate is not None and bool(self.estimate.all)

    def gradient_rank(self) -> int:
        """Rank of the gradient constraints of all its convolutions."""
        count = self.stages[0].geometry.input[0]
        if all(stage.groups == 1 for stage in self.stages):
            return matrix_rank(self._rows_of(0)) * count
        return sum(matrix_rank(self._rows_of(channel)) for channel in range(count))

    def _rows_of(self, channel: int) -> Tensor:
        """Gradient constraints of one channel."""
        blocks = []
        for layer in self.layers:
            cotangent = layer.stage.unscaled(layer.cotangent.value)
            meets = layer.stage.meeting()[:, channel, 0, 0] > 0
            blocks.append(gradient_matrix(cotangent[:, meets], layer.stage.geometry)[0])
        return torch.cat(blocks)

    @property
    def enough(self) -> bool:
        """Whether there are as many equations as unknowns, those of a residue class counted."""
        shapes = [stage.geometry for stage in self.stages]
        by_gradient = min(shapes[0].pixels, sum(map(class_bound, shapes))) * shapes[0].input[0]
        return by_gradient + self.weight_rows >= self.unknowns

    @property
    def full(self) -> bool:
        """Whether all equations together have full rank; for maps that are `affordable`."""
        if not self.enough:
            return False
        if self.known or self.gradient_rank() == self.unknowns:
            return True
        return determines(self.system(), EPS)

    def attacked(self) -> LayerReport:
        """What the attack makes of it: the cheapest equations, and all if these fall short."""
        _, report = self.solve(frugal=True)
        more = self.weight_rows > 0 and report.constraints != ("hybrid",)
        if int(report.rank) < self.unknowns and more:
            _, report = self.solve()
        return report


def random_maps(network: Network, active: float, generator: torch.Generator) -> list[Tensor]:
    """A value for every map.

    Parameters
    ----------
    network : Network
        The model.
    active : float
        Share of the outputs of a ReLU that are positive.
    generator : Generator
        Of the CPU.

    Returns
    -------
    list of Tensor
        (1, C, H, W) for each node, float64. Outputs of an activation lie in its range; that of a
        convolution is not computed from its input, on which no rank depends.
    """
    maps, weight = [], (network.stages or (network.head,))[0].weight
    for node in network.nodes:
        x = torch.randn(1, *node.shape, generator=generator, dtype=torch.float64)
        if isinstance(node.does, Activation):
            if node.does.flat:
                silent = torch.rand(x.shape, generator=generator) >= active
                x = torch.where(silent, 0.0, x.abs()).clamp(node.does.low, node.does.high)
            else:
                x = node.does.function(x)
        maps.append(x.to(weight))
    return maps


def random_problems(
    network: Network, maps: Sequence[Tensor], cotangent: Tensor
) -> Iterator[RandomProblem]:
    """The maps that convolutions take, in the order of the attack.

    Parameters
    ----------
    network : Network
        The model.
    maps : sequence of Tensor
        (1, C, H, W), the value of each node.
    cotangent : Tensor
        (1, C, H, W), the derivative of the loss by the last node.

    Yields
    ------
    RandomProblem
        The next one; those above it are taken to be solved.
    """
    remedy = "audit the model by trying the attack (rconv audit --trials 1, rconv.lab.run_trial)"
    network.refuse_blocks("the rank for random data", grouped=True, remedy=remedy)
    tiny = maps[0].new_full((1,), EPS)
    entry = network.head if isinstance(network.head, ConvEntry) else None
    # Bounds and the prior are no equations.
    ranges = zip(network.stages, network.input_ranges, strict=True)
    plans = [LayerPlan(stage, first=own is None, bounds=own or FREE, signs=False)
             for stage, own in ranges]  # fmt: skip
    state = BackwardState(
        network, plans, None if entry else _whole(maps[-1]), Cotangent(cotangent, tiny), {}
    )
    spanned = network.nodes[network.entered].inputs if entry and not entry.embedding else ()
    for i, node in enumerate(network.nodes):
        passed = isinstance(node.does, Activation) and not any(network.fed_by(i))
        if passed or i in spanned:
            state.given[i] = _whole(maps[i])
    for node in state.unsolved():
        problem = state.problem(
            node,
            lambda own: {"gradient": None, "relative_std": tiny, "observed": own.meeting()[None]},
        )
        layers = tuple(
            replace(own, gradient=_gradient(own.stage, own.cotangent.value, maps[node]))
            for own in problem.layers
        )
        yield RandomProblem(node, layers, problem.estimate)
        state.maps[node] = _whole(maps[node])


def _gradient(stage: Stage, cotangent: Tensor, x: Tensor) -> Tensor:
    """The weight gradient of a convolution of x, (1, D, C, kh, kw)."""
    g = stage.geometry
    own = stage.weight.shape, stage.unscaled(cotangent)
    return torch.nn.grad.conv2d_weight(x, *own, g.stride, g.padding, g.dilation)[None]


def _whole(value: Tensor) -> Estimate:
    return Estimate.whole(value, torch.full_like(value[..., 0, 0], EPS))

"""A network as the attack meets it, map by map, with random data in place of a client's.

Activations, the derivative by the head's input and the pixels are drawn; what the attack knows
when it comes to a map, it knows by its own walk through the network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.joint import joint_system, solve_map
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.attack.signal import Cotangent, Told
from rconv.attack.solve import Known
from rconv.attack.walk import Walk
from rconv.audit.ranks import EPS, class_bound, matrix_rank
from rconv.equations.gradient import gradient_matrix
from rconv.linalg.dense import determines
from rconv.linalg.equations import FREE
from rconv.model.activations import Activation
from rconv.model.ends import Entry
from rconv.model.geometry import Stage
from rconv.model.nodes import Network
from rconv.model.told import backward_order


@dataclass(frozen=True)
class Meeting:
    """One map that convolutions take, and what the attack knows when it comes to it.

    Parameters
    ----------
    node : int
        The map.
    known : tuple of Known
        What is known of each convolution that takes it.
    told : Told or None
        What is known of the map itself.
    bounds : tuple of float or None
        What it lies between; None for the image.
    """

    node: int
    known: tuple[Known, ...]
    told: Told | None
    bounds: tuple[float, float] | None

    @property
    def stages(self) -> list[Stage]:
        """The convolutions."""
        return [own.stage for own in self.known]

    @property
    def name(self) -> str:
        """Of the convolutions, as the attack's report has it."""
        return " and ".join(stage.name for stage in self.stages)

    @property
    def unknowns(self) -> int:
        """C·H·W."""
        return self.stages[0].geometry.unknowns

    @cached_property
    def plans(self) -> list[LayerPlan]:
        """Their equations, as the attack decides them; signs and priors are no equations."""
        options = {"first": self.bounds is None, "bounds": self.bounds or FREE, "signs": False}
        return [LayerPlan(stage, **options) for stage in self.stages]

    @property
    def weight_rows(self) -> int:
        """Weight constraints whose output is known, and known entries of the map."""
        entries = 0 if self.told is None else int((self.told.weight > 0).sum())
        return entries + sum(int((own.passed.weight > 0).sum()) for own in self.known)

    @property
    def told_whole(self) -> bool:
        """Whether what lies above tells every entry."""
        return self.told is not None and bool((self.told.weight > 0).all())

    def gradient_rank(self) -> int:
        """Rank of the gradient constraints of all its convolutions."""
        blocks = [gradient_matrix(own.cotangent, own.stage.geometry)[0] for own in self.known]
        return matrix_rank(torch.cat(blocks)) * self.stages[0].geometry.input[0]

    @property
    def enough(self) -> bool:
        """Whether there are as many equations as unknowns, those of a residue class counted."""
        shapes = [stage.geometry for stage in self.stages]
        by_gradient = min(shapes[0].pixels, sum(map(class_bound, shapes))) * shapes[0].input[0]
        return by_gradient + self.weight_rows >= self.unknowns

    @property
    def full(self) -> bool:
        """Whether all equations together have full rank; for maps that `affordable` allows."""
        if not self.enough:
            return False
        if self.told_whole or self.gradient_rank() == self.unknowns:
            return True
        return determines(joint_system(self.plans, self.known, self.told), EPS)

    def solve(self) -> LayerReport:
        """What the attack makes of it: the cheapest equations, and all if these fall short."""
        own = self.plans, self.known, self.told
        _, report = solve_map(*own, frugal=True)
        more = self.weight_rows > 0 and report.constraints != ("hybrid",)
        if int(report.rank) < self.unknowns and more:
            _, report = solve_map(*own)
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
                x = torch.where(silent, 0.0, x.abs())
            else:
                x = node.does.function(x)
        maps.append(x.to(weight))
    return maps


def meetings(network: Network, maps: Sequence[Tensor], cotangent: Tensor) -> Iterator[Meeting]:
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
    Meeting
        The next one; those above it are taken to be solved.
    """
    tiny = maps[0].new_full((1,), EPS)
    entry = network.head if isinstance(network.head, Entry) else None
    walk = Walk(network, None if entry else _whole(maps[-1]), Cotangent(cotangent, tiny))
    spanned = network.nodes[network.entered].inputs if entry and not entry.embedding else ()
    for node in backward_order(network):
        taken = list(network.fed_by(node))
        if taken and node not in spanned:
            known = tuple(_known(stage, walk.passed[i], maps[node], tiny) for i, stage in taken)
            yield Meeting(node, known, walk.told(node), network.range_of(node))
        if taken or isinstance(network.nodes[node].does, Activation):
            walk.solved(node, _whole(maps[node]))
        walk.pass_on(node, {})


def _known(stage: Stage, passed: Passed, x: Tensor, precision: Tensor) -> Known:
    """What is known of a convolution of x."""
    g = stage.geometry
    gradient = torch.nn.grad.conv2d_weight(
        x, stage.weight.shape, stage.unscaled(passed.cotangent), g.stride, g.padding, g.dilation
    )
    return Known(stage, passed, gradient[None], precision)


def _whole(value: Tensor) -> Told:
    return Told.whole(value, torch.full_like(value[..., 0, 0], EPS))

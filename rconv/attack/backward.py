"""The backward pass: from where the network is entered down to the image, map by map.

A generator yields each map that a convolution takes, and goes on once an estimate of it is known.
The attack solves the map's problem; the audit answers with random maps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rconv.attack.activation_vjp import through_activation
from rconv.attack.block_problem import BlockData, BlockProblem, cotangent_below, output_of
from rconv.attack.estimate import Cotangent, Estimate, Start, channel_errors
from rconv.attack.layer_below import Passed, closed_from_below
from rconv.attack.map_problem import ConvData, MapProblem
from rconv.attack.plan import LayerPlan
from rconv.attack.pooling_problem import PoolingProblem, cotangent_below_pool
from rconv.attack.report import LayerReport
from rconv.linalg.solution import Solution, root_mean_square
from rconv.linalg.system import ONE
from rconv.model.activations import Activation
from rconv.model.blocks import Block
from rconv.model.geometry import Stage
from rconv.model.nodes import CONCATENATION, SUM, Affine, Network, solve_order
from rconv.observe.noise import Observed
from rconv.observe.observation import Gradients


class BackwardState:
    """What is known of the maps of a network, and the derivatives of the loss by them.

    Parameters
    ----------
    network : Network
        The model.
    plans : sequence of LayerPlan
        One per convolution, in the order of the forward pass.
    last : Estimate or None
        The last node, the input of the first Linear; None where it is not known.
    cotangent : Cotangent
        The derivative of the loss by it, of all samples.
    offsets : mapping of str to Tensor
        Gradients of biases, (N, D), which settle the sides of kinks; none where a gradient is that
        of several samples.
    samples : int
        B, of each client.

    Attributes
    ----------
    maps : dict of int to Estimate
        Maps that are known at every position, by their nodes.
    given : dict of int to Estimate
        Maps that become known from elsewhere once the pass reaches them.
    """

    def __init__(
        self,
        network: Network,
        plans: Sequence[LayerPlan],
        last: Estimate | None,
        cotangent: Cotangent,
        offsets: Mapping[str, Tensor],
        samples: int = 1,
    ):
        self.network, self.offsets, self.samples = network, offsets, samples
        self.plans = {plan.stage.name: plan for plan in plans}
        end = len(network.nodes) - 1
        self._last = last
        self.maps = {end: last} if last is not None and not any(network.fed_by(end)) else {}
        self.given: dict[int, Estimate] = {}
        self._inputs: dict[int, Estimate] = {}
        self._outputs: dict[int, tuple[Cotangent, Estimate]] = {}
        self._estimates: dict[int, Estimate | None] = {}
        self._cotangents: dict[int, list[Cotangent]] = {end: [cotangent]}

    def unsolved(self, until: int | None = None) -> Iterator[int]:
        """The maps that convolutions take and that are not known, in the order of the attack.

        Each node must be in `maps` before the next one is asked for. The pass ends after the node
        `until`; at the image by default.
        """
        for node in solve_order(self.network):
            if node in self.given:
                self.maps[node] = self.given[node]
            elif any(self.network.fed_by(node)):
                yield node
            self._pass_on(node)
            if node == until:
                return

    def problem(
        self, node: int, data: Callable[[Stage], dict[str, Tensor]]
    ) -> MapProblem | BlockProblem:
        """The problem of a map that `unsolved` has yielded.

        `data` takes a convolution and returns what is known of its weight gradient: the fields of
        `ConvData` from `gradient` on; of a block, those of `BlockData`.
        """
        layers, blocks = [], any(type(own) is Block for _, own in self.network.fed_by(node))
        for i, stage in self.network.fed_by(node):
            cotangent, output = self._outputs[i]
            kind = BlockData if blocks else ConvData
            layers.append(kind(self.plans[stage.name], output, cotangent, **data(stage)))
        own = node, tuple(layers)
        if blocks and layers[0].block.pool is not None:
            return PoolingProblem(*own)
        if blocks:
            return BlockProblem(*own, self.samples, self.estimate(node), **self._beside(node))
        return MapProblem(*own, self.estimate(node))

    def estimate(self, node: int) -> Estimate | None:
        """What the maps above imply for a node; None for nothing."""
        found = self._last if node == len(self.network.nodes) - 1 else None
        for consumer in self.network.consumers[node]:
            own = self._implied_by(consumer, node)
            if own is not None:
                found = own if found is None else found.or_better(own)
        return found

    def cotangent(self, node: int) -> Cotangent:
        """The derivative by a node that has not been passed, all its consumers having been."""
        return Cotangent.total(self._cotangents[node])

    def _pass_on(self, node: int) -> None:
        """Give the derivative by a node to those it is made of."""
        does, inputs = self.network.nodes[node].does, self.network.nodes[node].inputs
        cotangent = self._received(node)
        estimate = self.maps.get(node) or self.estimate(node)
        self._estimates[node] = estimate
        if isinstance(does, Activation):
            self.maps[node] = estimate
            offset = self.offset_gradient(inputs[0], self.offsets)
            own = does, estimate.value, cotangent.value, offset
            below, self._inputs[node] = through_activation(
                *own, estimate.std, cotangent.relative_std
            )
            parts = [below]
        elif isinstance(does, Stage):
            self._outputs[node] = cotangent, estimate or Estimate.nothing(cotangent.value)
            if isinstance(does, Block):  # what it passes on depends on its input
                return
            parts = [propagated(does, cotangent)]
        elif isinstance(does, Affine):
            parts = [replace(cotangent, value=cotangent.value * does.scale[:, None, None])]
        elif does == CONCATENATION:
            widths = [self.network.nodes[i].shape[0] for i in inputs]
            pieces = cotangent.value.split(widths, dim=1)
            parts = [replace(cotangent, value=piece) for piece in pieces]
        else:
            parts = [cotangent] * len(inputs)
        for i, part in zip(inputs, parts, strict=True):
            self.receive(i, part)

    def receive(self, node: int, part: Cotangent) -> None:
        """Add to the derivative by a node what one of its consumers passes on."""
        self._cotangents.setdefault(node, []).append(part)

    def _beside(self, node: int) -> dict[str, Cotangent | Activation | Tensor | None]:
        """The derivative by a map that does not pass blocks, and what the offset below it says."""
        does, inputs = self.network.nodes[node].does, self.network.nodes[node].inputs
        parts = self._cotangents.get(node)
        found = {"direct": Cotangent.total(parts) if parts else None}
        if isinstance(does, Activation):
            found |= {"below": does, "offset": self.offset_gradient(inputs[0], self.offsets)}
        return found

    def _received(self, node: int) -> Cotangent:
        """The derivative by a node that is about to be passed on."""
        parts = self._cotangents.pop(node, [])
        for i, stage in self.network.fed_by(node):
            if isinstance(stage, Block):
                own = stage, self.maps[node], self._outputs[i][0]
                pooled = stage.pool is not None and stage.live_norm is None
                found = (
                    cotangent_below_pool(*own) if pooled else cotangent_below(*own, self.samples)
                )
                parts.append(found)
        return Cotangent.total(parts)

    def _implied_by(self, consumer: int, node: int) -> Estimate | None:
        """What one of the nodes that are made of a node implies for it."""
        does, inputs = self.network.nodes[consumer].does, self.network.nodes[consumer].inputs
        if isinstance(does, Stage):
            return None
        if isinstance(does, Activation):
            return self._inputs[consumer]
        above = self._estimates[consumer]
        if above is None:
            return None
        if isinstance(does, Affine):
            return above.undone(does.scale, does.shift)
        if does == CONCATENATION:
            before = inputs[: inputs.index(node)]
            first = sum(self.network.nodes[i].shape[0] for i in before)
            return above.channels(first, first + self.network.nodes[node].shape[0])
        for other in inputs:
            if other != node:
                known = self._computed(other)
                if known is None:
                    return None
                above = above.without(known)
        return above

    def _computed(self, node: int) -> Estimate | None:
        """A map as it follows from known maps below it; None where these are not known."""
        if node in self.maps:
            return self.maps[node]
        does = self.network.nodes[node].does
        inputs = [self._computed(i) for i in self.network.nodes[node].inputs]
        if not inputs or any(own is None for own in inputs):
            return None
        if isinstance(does, Block):  # which may normalise by the client's samples
            self.maps[node] = output_of(does, inputs[0], self.samples)
            return self.maps[node]
        value = self.network.nodes[node].evaluate([own.value for own in inputs])
        if isinstance(does, Stage):
            squares = does.weight.square().sum(dim=(2, 3))
            std = (inputs[0].std.square() @ squares.T).sqrt()
        elif isinstance(does, Affine):
            std = inputs[0].std * does.scale.abs()
        elif isinstance(does, Activation):
            std = inputs[0].std
        elif does == SUM:
            std = torch.stack([own.std for own in inputs]).norm(dim=0)
        else:
            std = torch.cat([own.std for own in inputs], dim=1)
        self.maps[node] = Estimate.whole(value, std)
        return self.maps[node]

    def offset_gradient(self, node: int, gradients: Gradients) -> Tensor | None:
        """The derivative by a node summed over the positions, (N, C), from an offset's gradient."""
        does, name = self.network.nodes[node].does, self.network.nodes[node].name
        if len(self.network.consumers[node]) > 1:
            return None
        if isinstance(does, Stage):
            return gradients.get(does.offset)
        if isinstance(does, Affine):
            return gradients.get(f"{name}.bias")
        if does != SUM:
            return None
        found = (self.offset_gradient(i, gradients) for i in self.network.nodes[node].inputs)
        return next((own for own in found if own is not None), None)


def propagated(stage: Stage, cotangent: Cotangent) -> Cotangent:
    """X̄ = convᵀ(Ō), and its relative error for independent errors of Ō of one size."""
    value = stage.transpose(cotangent.value)
    spread = cotangent.relative_std * root_mean_square(cotangent.value) * stage.gain
    size = root_mean_square(value)
    relative = (spread / torch.where(size > 0, size, 1.0)).clamp(max=1.0)
    return Cotangent(value, relative.maximum(cotangent.relative_std))


def backward_pass(
    network: Network,
    plans: Sequence[LayerPlan],
    start: Start,
    *,
    solve: Callable[[MapProblem], tuple[Solution, LayerReport]] = MapProblem.solve,
) -> tuple[Tensor, tuple[LayerReport, ...], Tensor]:
    """From where the network is entered down to the image.

    Parameters
    ----------
    network : Network
        The model.
    plans : sequence of LayerPlan
        One per convolution, in the order of the forward pass.
    start : Start
        What the entry point determines, of M systems of B samples each.
    solve : callable
        Solves the problem of a map.

    Returns
    -------
    images : Tensor
        (M·B, C, H, W).
    reports : tuple of LayerReport
        From where the network is entered down to the first convolution.
    std : Tensor
        (M·B,), standard deviation of the images, in the unit of the pixels, from the noise alone.

    Raises
    ------
    UnsupportedModelError
        Where missing gradients leave no equation of a map.
    """
    data = partial(_weight_gradient, observed=start.observed)
    known: dict[int, Passed] = {}
    while True:
        found, passed = _one_pass(network, plans, start, solve, data, known)
        new = [map_ for map_ in passed if map_.node not in known]
        closed = closed_from_below(network, data, new)
        if closed is None:
            return found
        above = passed[: [map_.node for map_ in passed].index(closed.node)]
        known = {map_.node: map_ for map_ in (*above, closed)}


def _one_pass(
    network: Network,
    plans: Sequence[LayerPlan],
    start: Start,
    solve: Callable[[MapProblem], tuple[Solution, LayerReport]],
    data: Callable[[Stage], dict],
    known: Mapping[int, Passed],
) -> tuple[tuple[Tensor, tuple[LayerReport, ...], Tensor], list[Passed]]:
    """What `backward_pass` returns, and the maps that were solved; `known` ones are taken over."""
    observed = start.observed
    offsets = _offsets(observed) if start.samples == 1 else {}
    own = start.estimate, start.cotangent, offsets, start.samples
    state = BackwardState(network, plans, *own)
    reports, passed = [start.report], []
    std = None if start.estimate is None else start.estimate.std
    if start.solved is not None:
        node, estimate, report = start.solved
        state.given[node] = estimate
        reports.append(report)
        std = estimate.std
    for node in state.unsolved():
        problem = state.problem(node, data)
        problem.refuse_without_equations()
        own = known.get(node) or Passed(node, problem, *solve(problem))
        passed.append(own)
        reports.append(own.report.under(reports, problem.bounds))
        value = own.solution.value.reshape(-1, *network.nodes[node].shape)
        std = channel_errors(value, own.solution.error, own.report.constraints, observed.noise)
        state.maps[node] = Estimate.whole(value, std)
    return (state.maps[0].value, tuple(reports), root_mean_square(std)), passed


def _weight_gradient(
    stage: Stage, observed: Observed
) -> dict[str, Tensor | None] | dict[str, dict[str, Tensor]]:
    """What is observed of a convolution's parameters; see `ConvData` and `BlockData`."""
    if isinstance(stage, Block):
        return _block_data(stage, observed)
    name = f"{stage.name}.weight"
    if name not in observed.gradients:  # a frozen parameter: no equation takes the zeros
        gradient = stage.weight.new_zeros(len(observed), *stage.weight.shape)
        nothing = torch.zeros_like(ONE)
        return {"gradient": gradient, "relative_std": 0 * observed.unit, "observed": nothing}
    seen, std = observed.seen(name), observed.std(name)
    gradient = stage.expanded(observed.gradients[name])
    known = ONE if seen is None else stage.expanded(seen.to(gradient))
    if stage.groups > 1:
        known = known * stage.meeting().expand(len(observed), -1, -1, -1, -1)
    return {
        "gradient": gradient,
        "relative_std": observed.relative_std(name),
        "std": None if std is None else stage.expanded(std),
        "observed": known,
    }


def _block_data(block: Block, observed: Observed) -> dict[str, dict[str, Tensor]]:
    """What is observed of a block's parameters; see `BlockData`."""
    found, stds = {}, {}
    for name in block.parameters:
        if name in observed.gradients:
            seen, std = observed.seen(name), observed.every_std(name)
            found[name] = observed.gradients[name]
            stds[name] = std if seen is None else torch.where(seen, std, torch.inf)
    for name, momentum in block.statistics.items():
        if name in observed.gradients:  # old and new value round, in size as one or as the batch's
            found[name] = observed.gradients[name]
            stds[name] = observed.noise.relative * (1 + found[name].abs()) / momentum
    return {"gradients": found, "stds": stds}


def _offsets(observed: Observed) -> Gradients:
    """Gradients that settle the sides of kinks; not a number where an entry is not observed."""
    found = dict(observed.gradients)
    for name, gradient in found.items():
        seen = observed.seen(name)
        if seen is not None:
            found[name] = torch.where(seen, gradient, torch.nan)
    return found

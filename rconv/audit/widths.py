"""How many filters the rank of a layer needs, and networks with other numbers of filters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from rconv.audit.generic import RandomProblem, random_problems
from rconv.audit.layers import drawn
from rconv.equations.windows import residue_classes
from rconv.model.geometry import Stage
from rconv.model.heads import Head
from rconv.model.nodes import CONCATENATION, SUM, Affine, Network, Node, UnsupportedModelError


@dataclass(frozen=True)
class Width:
    """How many filters of a convolution the rank of its layer needs.

    Parameters
    ----------
    layer : str
        The layer, as `LayerAudit` names it.
    convolution : str
        One of its convolutions.
    tied : tuple of str
        Others that must have as many filters, because what they compute is added.
    filters : int
        What it has.
    needed : int or None
        Fewest with which the rank is full, all else left as it is; None where no number was found
        or the rank is too large to compute.
    """

    layer: str
    convolution: str
    tied: tuple[str, ...]
    filters: int
    needed: int | None


def width_of(network: Network, met: RandomProblem, node: int, active: float, seed: int) -> Width:
    """How many filters of one of a map's convolutions it takes to tell the map.

    Parameters
    ----------
    network : Network
        The model.
    met : RandomProblem
        The map.
    node : int
        A convolution that takes it.
    active, seed
        As `rconv.audit.audit` takes them.

    Returns
    -------
    Width
        Found by trying: as many filters have full rank, one less has not.
    """
    name, present = network.nodes[node].does.name, network.nodes[node].shape[0]
    try:
        group = tied(network, node)
        needed = _fewest(network, met, node, active, seed)
    except UnsupportedModelError:
        group, needed = (node,), None
    others = tuple(network.nodes[i].does.name for i in group if i != node)
    return Width(met.name, name, others, present, needed)


def met_at(network: Network, node: int, active: float, seed: int) -> RandomProblem:
    """What the attack knows, of random data, when it comes to one of the maps.

    Parameters
    ----------
    network : Network
        The model.
    node : int
        A map that a convolution takes.
    active, seed
        As `rconv.audit.audit` takes them.
    """
    own = random_problems(network, *drawn(network, active, seed))
    return next(each for each in own if each.node == node)


def _fewest(
    network: Network, met: RandomProblem, node: int, active: float, seed: int
) -> int | None:
    """Between a number that is too few and one that suffices, both of which were tried."""
    if not met.layers[0].plan.affordable:
        return None

    def changed(filters: int) -> RandomProblem:
        return met_at(with_filters(network, node, filters, seed), met.node, active, seed)

    def counted(filters: int) -> bool:
        return changed(filters).enough

    def suffices(filters: int) -> bool:
        return changed(filters).full

    g = network.nodes[node].does.geometry
    # With so many, gradient constraints are enough in every residue class; a half may be silent.
    most = 2 * max(ceil(len(pixels) / len(offsets)) for offsets, pixels in residue_classes(g))
    most = max(most, g.output[0])
    low = _bisected(counted, 0, most) - 1  # too few by count
    step = 1  # the rank is rarely far above
    while not suffices(min(low + step, most)):
        if low + step >= most:
            return None
        low, step = low + step, 2 * step
    return _bisected(suffices, low, min(low + step, most))


def _bisected(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The number above `low`, up to `high`, from which on it holds."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class _Channels:
    """Channels of a map in the changed network: whose copies they are, and which are new."""

    source: Tensor
    new: Tensor

    def same(self, other: "_Channels") -> bool:
        return torch.equal(self.source, other.source) and torch.equal(self.new, other.new)


def tied(network: Network, node: int) -> tuple[int, ...]:
    """The convolutions that have as many filters as one of them, whatever that number is.

    Parameters
    ----------
    network : Network
        The model.
    node : int
        A convolution.

    Returns
    -------
    tuple of int
        Itself and the others whose output it is added to, as their nodes.

    Raises
    ------
    UnsupportedModelError
        If what it is added to has a number of channels that no convolution sets.
    """
    found, waiting = set(), {node}
    while waiting:
        i = waiting.pop()
        found.add(i)
        makers = [j for j in network.consumers[i] if not _sets_width(network.nodes[j])]
        makers = [j for j in makers if network.nodes[j].does != CONCATENATION]
        below = () if _sets_width(network.nodes[i]) else network.nodes[i].inputs
        waiting |= {*makers, *below} - found
    stages = [i for i in sorted(found) if isinstance(network.nodes[i].does, Stage)]
    for i in found:
        if network.nodes[i].does in (None, CONCATENATION):
            raise UnsupportedModelError(
                f"{network.nodes[node].name} is added to {network.nodes[i].name}, which keeps its "
                "channels: its filters cannot be more or fewer"
            )
    return tuple(stages)


def _sets_width(node: Node) -> bool:
    """Whether the channels of a map are not those of the maps that it is made of."""
    return node.does is None or node.does == CONCATENATION or isinstance(node.does, Stage)


def with_filters(network: Network, node: int, filters: int, seed: int = 0) -> Network:
    """The network with `filters` filters in a convolution, and in those tied to it.

    Parameters
    ----------
    network : Network
        The model.
    node : int
        A convolution.
    filters : int
        The first ones stay as they are; new ones have random weights of the same size.
    seed : int
        Of these.

    Returns
    -------
    Network
        Nodes in the same order.

    Raises
    ------
    UnsupportedModelError
        As `tied`, or if the changed map is added to one that is not.
    """
    group, generator = tied(network, node), torch.Generator().manual_seed(seed)
    channels: list[_Channels] = []
    nodes: list[Node] = []
    for i, own in enumerate(network.nodes):
        inputs = [channels[j] for j in own.inputs]
        present = own.shape[0]
        if own.does is None or isinstance(own.does, Stage):
            count = torch.arange(filters if i in group else present)
            mine = _Channels(count % present, count >= present)
        elif own.does == CONCATENATION:
            mine = _joined(inputs, [network.nodes[j].shape[0] for j in own.inputs])
        else:
            mine = inputs[0]
            if own.does == SUM and not all(mine.same(other) for other in inputs):
                raise UnsupportedModelError(f"{own.name}: adds maps of different channels then")
        channels.append(mine)
        does = own.does
        if isinstance(does, Stage):
            does = _changed(does, mine, inputs[0], generator)
        elif isinstance(does, Affine):
            does = Affine(does.scale[mine.source], does.shift[mine.source])
        nodes.append(replace(own, does=does, shape=(len(mine.source), *own.shape[1:])))
    return Network.of(nodes, _head(network.head, network.nodes[-1].shape, channels[-1]))


def parameters(network: Network) -> int:
    """Weights and biases of the convolutions and of the head."""
    tensors = [part for stage in network.stages for part in (stage.weight, stage.bias)]
    tensors.append(network.head.weight)
    biases = len(network.head.weight) if network.head.has_bias else 0
    return biases + sum(part.numel() for part in tensors if part is not None)


def _joined(inputs: list[_Channels], widths: list[int]) -> _Channels:
    """Channels of a concatenation."""
    starts = [sum(widths[:k]) for k in range(len(widths))]
    source = [own.source + start for own, start in zip(inputs, starts, strict=True)]
    return _Channels(torch.cat(source), torch.cat([own.new for own in inputs]))


def _changed(
    stage: Stage, output: _Channels, below: _Channels, generator: torch.Generator
) -> Stage:
    """A convolution of some of the channels, and of new ones."""
    own = stage.weight[output.source][:, below.source]
    size = stage.weight.square().mean().sqrt()
    drawn = torch.randn(own.shape, generator=generator, dtype=own.dtype).to(own.device)
    new = (output.new[:, None] | below.new[None]).to(own.device)
    g = stage.geometry
    return replace(
        stage,
        weight=torch.where(new[..., None, None], size * drawn, own),
        bias=None if stage.bias is None else stage.bias[output.source],
        scale=None if stage.scale is None else stage.scale[output.source],
        geometry=replace(
            g,
            input=(len(below.source), *g.input[1:]),
            output=(len(output.source), *g.output[1:]),
        ),
    )


def _head(head: Head, shape: tuple[int, int, int], below: _Channels) -> Head:
    weight = head.weight.reshape(-1, shape[0], shape[1] * shape[2])
    return replace(head, weight=weight[:, below.source].flatten(1))

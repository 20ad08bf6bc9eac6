"""How many filters a layer needs to leak, and the change that closes a leak most cheaply."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from torch import nn

from rconv.audit.generic import Meeting, meetings
from rconv.audit.layers import (
    NOT_UNIQUE,
    LayerAudit,
    audit_network,
    check_share,
    drawn,
    overall,
)
from rconv.audit.widths import parameters, tied, with_filters
from rconv.equations.windows import residue_classes
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.read import read


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


@dataclass(frozen=True)
class Change:
    """Fewer filters in one convolution, with which a layer no longer determines its input.

    Parameters
    ----------
    width : Width
        What is changed.
    filters : int
        To how many filters: one less than are needed.
    parameters : int
        Weights and biases that go.
    layers : list of LayerAudit
        The audit of the changed model, head first.
    """

    width: Width
    filters: int
    parameters: int
    layers: list[LayerAudit]

    @property
    def removed(self) -> int:
        """Filters that go, over all convolutions that are tied."""
        return (self.width.filters - self.filters) * (1 + len(self.width.tied))


@dataclass(frozen=True)
class Findings:
    """What the audit says of a model.

    Parameters
    ----------
    layers : list of LayerAudit
        Head first.
    widths : list of Width
        One per convolution, in the order of `layers`.
    change : Change or None
        The cheapest that makes the model one that does not leak uniquely; None where it is one
        already, or no change of one convolution's filters does.
    """

    layers: list[LayerAudit]
    widths: list[Width]
    change: Change | None

    @property
    def verdict(self) -> str:
        """`overall` of the layers."""
        return overall(self.layers)


def examine(
    model: nn.Module, input_shape: tuple[int, int, int], *, active: float = 0.5, seed: int = 0
) -> Findings:
    """Judge a model, and look for the filters that its layers need and for the cheapest change.

    Parameters
    ----------
    model, input_shape, active, seed
        As `rconv.audit.audit` takes them.

    Returns
    -------
    Findings
        Ranks alone: what is short of rank may still be closed by signs, or shown by a prior.

    Raises
    ------
    UnsupportedModelError
        A layer that the attack cannot pass.
    ValueError
        `active` out of range.
    """
    check_share(active)
    network = read(model, input_shape)
    options = {"active": active, "seed": seed}
    layers = audit_network(network, **options)
    found = [
        (i, _width(network, met, i, **options))
        for met in meetings(network, *drawn(network, active, seed))
        for i, _ in network.fed_by(met.node)
    ]
    change = None if overall(layers) == NOT_UNIQUE else _cheapest(network, found, **options)
    return Findings(layers, [width for _, width in found], change)


def _width(network: Network, met: Meeting, node: int, active: float, seed: int) -> Width:
    """How many filters of one of a map's convolutions it takes to tell the map."""
    name, present = network.nodes[node].does.name, network.nodes[node].shape[0]
    try:
        group = tied(network, node)
        needed = _fewest(network, met, node, active, seed)
    except UnsupportedModelError:
        group, needed = (node,), None
    others = tuple(network.nodes[i].does.name for i in group if i != node)
    return Width(met.name, name, others, present, needed)


def _fewest(network: Network, met: Meeting, node: int, active: float, seed: int) -> int | None:
    """Between a number that is too few and one that suffices, both of which were tried."""
    if not met.plans[0].affordable:
        return None

    def changed(filters: int) -> Meeting:
        other = with_filters(network, node, filters, seed)
        own = meetings(other, *drawn(other, active, seed))
        return next(each for each in own if each.node == met.node)

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


def _cheapest(
    network: Network, found: list[tuple[int, Width]], active: float, seed: int
) -> Change | None:
    """The first of the candidates, the cheapest first, that an audit with other data confirms."""
    for node, width in sorted(_candidates(found), key=lambda own: _cost(network, *own)):
        changed = with_filters(network, node, width.needed - 1, seed)
        layers = audit_network(changed, active=active, seed=seed + 1)
        if overall(layers) == NOT_UNIQUE:
            less = parameters(network) - parameters(changed)
            return Change(width, width.needed - 1, less, layers)
    return None


def _candidates(found: list[tuple[int, Width]]) -> Iterator[tuple[int, Width]]:
    """Convolutions that can do with so few filters that their layer's rank is short."""
    for node, width in found:
        if width.needed is not None and 1 < width.needed <= width.filters:
            yield node, width


def _cost(network: Network, node: int, width: Width) -> tuple[int, int]:
    """Filters that go, then parameters that go."""
    less = (width.filters - width.needed + 1) * (1 + len(width.tied))
    changed = with_filters(network, node, width.needed - 1)
    return less, parameters(network) - parameters(changed)

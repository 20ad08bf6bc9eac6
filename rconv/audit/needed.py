"""How many filters of a convolution the rank of its layer needs."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from rconv.audit.generic import RandomProblem, random_problems
from rconv.audit.layers import drawn
from rconv.audit.widths import tied, with_filters
from rconv.equations.windows import residue_classes
from rconv.model.nodes import Network, UnsupportedModelError


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

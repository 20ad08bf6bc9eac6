"""In which order the maps of a network can be solved, from its head back to the image.

A map is solved where a convolution or the head takes it, since their gradients are equations in it,
or where what is made of it determines it: a concatenation its parts, a sum its last unknown term.
"""

import torch

from rconv.model.activations import Activation
from rconv.model.nodes import CONCATENATION, SUM, Affine, Network, UnsupportedModelError


def solve_order(network: Network) -> tuple[int, ...]:
    """The order in which the attack goes through the nodes.

    Each node stands behind all those that are made of it. Raises UnsupportedModelError where an
    activation's output is not determined, so that nothing says where it is active.
    """
    order: list[int] = []
    whole: set[int] = set()
    waiting = set(range(len(network.nodes)))
    while waiting:
        ready = [i for i in waiting if waiting.isdisjoint(network.consumers[i])]
        told = {i: _is_solved(network, i, whole) for i in ready}
        able = [i for i in ready if told[i] or not isinstance(network.nodes[i].does, Activation)]
        if not able:
            raise _refusal(network, max(ready))
        if told[max(able)]:
            whole.add(max(able))
        order.append(max(able))
        waiting.remove(max(able))
    if len(order) > 1 and not any(network.fed_by(0)):
        raise UnsupportedModelError("no convolution takes the image itself: nothing tells it")
    return tuple(order)


def _is_solved(network: Network, node: int, whole: set[int]) -> bool:
    """Whether a node is known whole once those in `whole` are."""
    if node == len(network.nodes) - 1 or any(network.fed_by(node)):
        return True
    return any(
        maker in whole and _inverts(network, maker, node, whole)
        for maker in network.consumers[node]
    )


def _inverts(network: Network, maker: int, node: int, whole: set[int]) -> bool:
    """Whether what is made of a node, and known, determines all of it."""
    does = network.nodes[maker].does
    if isinstance(does, Affine):
        return bool((does.scale != 0).all())
    if isinstance(does, Activation):  # one that never saturates
        return does.low == -torch.inf and does.high == torch.inf
    others = [other for other in network.nodes[maker].inputs if other != node]
    return does == CONCATENATION or (
        does == SUM and all(_can_be_computed(network, other, whole) for other in others)
    )


def _can_be_computed(network: Network, node: int, whole: set[int]) -> bool:
    inputs = network.nodes[node].inputs
    return node in whole or (
        bool(inputs) and all(_can_be_computed(network, source, whole) for source in inputs)
    )


def _refusal(network: Network, node: int) -> UnsupportedModelError:
    takers = " and ".join(network.nodes[i].name for i in network.consumers[node])
    kind = network.nodes[node].does.name
    return UnsupportedModelError(
        f"{network.nodes[node].name}: no convolution takes the output of this {kind}, only "
        f"{takers}, which leaves open where it is active"
    )

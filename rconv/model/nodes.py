"""What a model is read into: a graph of maps from the image up, and the order to solve them in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rconv.model.activations import Activation
from rconv.model.geometry import Stage
from rconv.model.heads import ConvEntry, Head

SUM, CONCATENATION = "sum", "concatenation"

CHAIN = (
    "use a convolution with a stride for pooling, ReLU for other activations, and model.eval() for "
    "BatchNorm"
)
"""The remedy for methods that solve no layers together."""


class UnsupportedModelError(ValueError):
    """The attack does not apply to this model; the message names the layer, why, and what helps.

    It is "layer: reason; remedy", or a sentence about the whole model. `reasons` are all that
    stands in the way, as layer and reason; by default what the message says. The layer is "" where
    a reason is about the whole model.
    """

    def __init__(self, message: str, reasons: Sequence[tuple[str, str]] = ()):
        super().__init__(message)
        layer, colon, reason = message.partition(": ")
        first = (layer, reason) if colon and " " not in layer else ("", message)
        self.reasons: tuple[tuple[str, str], ...] = tuple(reasons) or (first,)


@dataclass(frozen=True)
class Affine:
    """A BatchNorm in evaluation that stands alone: scale and shift of each channel, (C,)."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Node:
    """One map of the network, (C, H, W) for each image, and how it is made of others.

    `does` is a convolution (without its activation), an elementwise function, SUM, CONCATENATION
    along the channels, or None for the image; `inputs` are the indices of the nodes that it takes.
    A message calls it by its `name`.
    """

    name: str
    does: Stage | Activation | Affine | str | None
    inputs: tuple[int, ...]
    shape: tuple[int, int, int]

    def evaluate(self, inputs: list[Tensor]) -> Tensor:
        """Its map, (N, C, H, W), from those it is made of."""
        if isinstance(self.does, Stage):
            return self.does.evaluate(inputs[0])
        if isinstance(self.does, Affine):
            return inputs[0] * self.does.scale[:, None, None] + self.does.shift[:, None, None]
        if isinstance(self.does, Activation):
            return self.does.function(inputs[0])
        return sum(inputs) if self.does == SUM else torch.cat(inputs, dim=1)


@dataclass(frozen=True)
class Network:
    """A model as the attack reads it.

    `stages` are the convolutions in the order of the forward pass; none where the model starts with
    its Linear. `head` is what follows them: the first Linear, or a part that is not read. `nodes`
    reach from the image to the input of the head, or to the convolution that is entered, each after
    those that it takes.
    """

    stages: tuple[Stage, ...]
    head: Head | ConvEntry
    nodes: tuple[Node, ...]

    @staticmethod
    def of(nodes: list[Node], head: Head | ConvEntry) -> "Network":
        """The network of these nodes."""
        stages = tuple(node.does for node in nodes if isinstance(node.does, Stage))
        return Network(stages, head, tuple(nodes))

    @property
    def parameters(self) -> list[list[str]]:
        """Names that the parameters of each layer can have, from where the network ends down."""
        norms = [node.name for node in self.nodes if isinstance(node.does, Affine)]
        return [
            self.head.parameters,
            *(stage.parameters for stage in reversed(self.stages)),
            *([f"{name}.weight", f"{name}.bias"] for name in norms),
        ]

    @property
    def entered(self) -> int:
        """The node of the convolution that a `ConvEntry` names."""
        names = [node.does.name if isinstance(node.does, Stage) else "" for node in self.nodes]
        return names.index(self.head.name)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.nodes[0].shape

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """Of each node, the nodes that are made of it, in order."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in dict.fromkeys(node.inputs):
                found[j].append(i)
        return tuple(map(tuple, found))

    @property
    def input_ranges(self) -> list[tuple[float, float] | None]:
        """What the input of each convolution lies between; None for the image."""
        convolutions = [node for node in self.nodes if isinstance(node.does, Stage)]
        return [self.range_of(node.inputs[0]) for node in convolutions]

    def range_of(self, node: int) -> tuple[float, float] | None:
        """What a map lies between; None for the image."""
        does, inputs = self.nodes[node].does, self.nodes[node].inputs
        if does is None:
            return None
        if isinstance(does, Activation):
            return does.low, does.high
        ranges = [self.range_of(i) for i in inputs] if isinstance(does, str) else [None]
        if None in ranges:
            return -torch.inf, torch.inf
        lows, highs = zip(*ranges, strict=True)
        return (sum(lows), sum(highs)) if does == SUM else (min(lows), max(highs))

    def required_chain(self, method: str, *, norms: bool = True) -> "Network":
        """The network, for a method that knows chains only.

        Raises UnsupportedModelError where a map has two consumers or is made of two others, at a
        BatchNorm unless the method knows `norms`, and where the model is not read up to its first
        Linear.
        """
        if isinstance(self.head, ConvEntry):
            raise UnsupportedModelError(f"{self.head.reason}; {method} starts at the first Linear")
        self.refuse_blocks(method)
        branch = next((i for i, consumer in enumerate(self.consumers) if len(consumer) > 1), None)
        if branch is not None:
            raise UnsupportedModelError(
                f"{self.nodes[branch].name}: the network branches here; {method} knows chains only"
            )
        norm = next((stage.norm for stage in self.stages if stage.norm is not None), None)
        if norm is not None and not norms:
            raise UnsupportedModelError(f"{norm}: {method} does not know BatchNorm2d")
        return self

    @property
    def has_blocks(self) -> bool:
        """Whether layers are solved for together with the convolution below them."""
        return not all(stage.linear for stage in self.stages)

    def refuse_blocks(self, method: str, *, grouped: bool = False, remedy: str = CHAIN) -> None:
        """Refuse layers that are solved for together, and groups, for methods without them."""
        found = next((stage for stage in self.stages if stage.groups > 1 and not grouped), None)
        if found is not None:
            raise UnsupportedModelError(f"{found.name}: {method} does not know groups")
        block = next((stage for stage in self.stages if not stage.linear), None)
        if block is not None:
            layer, module = block.layers[-1]
            raise UnsupportedModelError(
                f"{layer}: {method} does not know {type(module).__name__}; {remedy}"
            )

    def evaluate(self, images: Tensor) -> Tensor:
        """The last node's map, (N, C, H, W), of images (N, C, H, W)."""
        return self.maps(images)[-1]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Every node's map, (N, C, H, W), of images (N, C, H, W)."""
        maps = [images]
        for node in self.nodes[1:]:
            maps.append(node.evaluate([maps[i] for i in node.inputs]))
        return maps

    def fed_by(self, node: int) -> Iterator[tuple[int, Stage]]:
        """The convolutions that take a node: their indices and themselves."""
        for i in self.consumers[node]:
            if isinstance(self.nodes[i].does, Stage):
                yield i, self.nodes[i].does


def solve_order(network: Network) -> tuple[int, ...]:
    """The order in which the attack goes through the nodes, from the head back to the image.

    A map is solved where a convolution or the head takes it, since their gradients are equations
    in it, or where what is made of it determines it: a concatenation its parts, a sum its last
    unknown term. Each node stands behind all those that are made of it. Raises
    UnsupportedModelError where an activation's output is not determined, so that nothing says where
    it is active.
    """
    order: list[int] = []
    whole: set[int] = set()
    waiting = set(range(len(network.nodes)))
    while waiting:
        ready = [i for i in waiting if waiting.isdisjoint(network.consumers[i])]
        solved = {i: _is_solved(network, i, whole) for i in ready}
        able = [i for i in ready if solved[i] or not isinstance(network.nodes[i].does, Activation)]
        if not able:
            raise _refusal(network, max(ready))
        if solved[max(able)]:
            whole.add(max(able))
        order.append(max(able))
        waiting.remove(max(able))
    if len(order) > 1 and not any(network.fed_by(0)):
        raise UnsupportedModelError("no convolution takes the image itself: nothing determines it")
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

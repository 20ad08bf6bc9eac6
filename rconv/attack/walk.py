"""From map to map, backwards: what is known of each, and the derivative of the loss by it."""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.backward import Passed, through_activation
from rconv.attack.signal import Cotangent, Told
from rconv.linalg.solution import root_mean_square
from rconv.model.activations import Activation
from rconv.model.geometry import Stage
from rconv.model.nodes import CONCATENATION, SUM, Affine, Network
from rconv.observe.observation import Gradients


class Walk:
    """Where the recursion stands, for N images.

    Parameters
    ----------
    network : Network
        The model.
    head : Told or None
        Its last node, the input of the first Linear; None where it is not known.
    cotangent : Cotangent
        The derivative of the loss by it.

    Attributes
    ----------
    whole : dict of int to Told
        Maps that are known at every position, by their nodes.
    passed : dict of int to Passed
        What was on the far side of each activation, and what is known of each convolution's
        output, by their nodes.
    """

    def __init__(self, network: Network, head: Told | None, cotangent: Cotangent):
        self.network, self.head = network, head
        last = len(network.nodes) - 1
        whole = head is not None and not any(network.fed_by(last))
        self.whole: dict[int, Told] = {last: head} if whole else {}
        self.passed: dict[int, Passed] = {}
        self._told: dict[int, Told | None] = {}
        self._cotangents: dict[int, list[Cotangent]] = {last: [cotangent]}

    def solved(self, node: int, told: Told) -> None:
        """Take the solution of a node's equations as its map."""
        self.whole[node] = told

    def told(self, node: int) -> Told | None:
        """What head, activations, sums and concatenations say of a node; None for nothing."""
        found = None
        if node == len(self.network.nodes) - 1:
            found = self.head
        for maker in self.network.consumers[node]:
            own = self._told_by(maker, node)
            if own is not None:
                found = own if found is None else found.or_better(own)
        return found

    def pass_on(self, node: int, gradients: Gradients) -> None:
        """Give the derivative by a node to those it is made of.

        Parameters
        ----------
        node : int
            Those that are made of it have been passed.
        gradients : dict of str to Tensor
            Name → (N, *parameter shape): those of offsets tell the sides of kinks.
        """
        does, inputs = self.network.nodes[node].does, self.network.nodes[node].inputs
        cotangent = Cotangent.total(self._cotangents.pop(node))
        self._told[node] = told = self.whole.get(node) or self.told(node)
        if isinstance(does, Activation):
            self.whole[node] = told
            offset = self.offset_gradient(inputs[0], gradients)
            own = does, told.value, cotangent.value, offset, told.error, cotangent.noise
            self.passed[node] = passed = through_activation(*own)
            parts = [Cotangent(passed.cotangent, passed.cotangent_noise)]
        elif isinstance(does, Stage):
            self.passed[node] = passed = _passed(told, cotangent)
            parts = [_propagated(does, passed)]
        elif isinstance(does, Affine):
            parts = [replace(cotangent, value=cotangent.value * does.scale[:, None, None])]
        elif does == CONCATENATION:
            widths = [self.network.nodes[i].shape[0] for i in inputs]
            pieces = cotangent.value.split(widths, dim=1)
            parts = [replace(cotangent, value=piece) for piece in pieces]
        else:
            parts = [cotangent] * len(inputs)
        for i, part in zip(inputs, parts, strict=True):
            self._cotangents.setdefault(i, []).append(part)

    def _told_by(self, maker: int, node: int) -> Told | None:
        """What one of the nodes that are made of a node says of it."""
        does, inputs = self.network.nodes[maker].does, self.network.nodes[maker].inputs
        if isinstance(does, Stage):
            return None
        if isinstance(does, Activation):
            passed = self.passed[maker]
            return Told(passed.value, passed.weight, passed.error)
        above = self._told[maker]
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

    def _computed(self, node: int) -> Told | None:
        """A map as it follows from those below it that are known; None where these are not."""
        if node in self.whole:
            return self.whole[node]
        does = self.network.nodes[node].does
        inputs = [self._computed(i) for i in self.network.nodes[node].inputs]
        if not inputs or any(own is None for own in inputs):
            return None
        value = self.network.nodes[node].evaluate([own.value for own in inputs])
        if isinstance(does, Stage):
            squares = does.weight.square().sum(dim=(2, 3))
            error = (inputs[0].error.square() @ squares.T).sqrt()
        elif isinstance(does, Affine):
            error = inputs[0].error * does.scale.abs()
        elif isinstance(does, Activation):
            error = inputs[0].error
        elif does == SUM:
            error = torch.stack([own.error for own in inputs]).norm(dim=0)
        else:
            error = torch.cat([own.error for own in inputs], dim=1)
        self.whole[node] = Told.whole(value, error)
        return self.whole[node]

    def cotangent(self, node: int) -> Cotangent:
        """The derivative by a node that has not been passed, all it is part of having been."""
        return Cotangent.total(self._cotangents[node])

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


def _passed(told: Told | None, cotangent: Cotangent) -> Passed:
    """What is known of a convolution's output."""
    if told is None:
        nothing = torch.zeros_like(cotangent.value)
        told = Told(nothing, nothing, nothing.flatten(2).amax(dim=2))
    return Passed(cotangent.value, told.value, told.weight, told.error, cotangent.noise)


def _propagated(stage: Stage, passed: Passed) -> Cotangent:
    """X̄ = convᵀ(Ō), and its relative noise for independent errors of Ō of one size."""
    value = stage.transpose(passed.cotangent)
    spread = passed.cotangent_noise * root_mean_square(passed.cotangent) * stage.gain
    size = root_mean_square(value)
    noise = (spread / torch.where(size > 0, size, 1.0)).clamp(max=1.0)
    return Cotangent(value, noise.maximum(passed.cotangent_noise))

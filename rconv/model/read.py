"""A model as the attack reads it: maps up to the first Linear, or to where it can be entered."""

import math
import operator
from collections.abc import Sequence

import torch
from torch import nn

from rconv.model.agreement import refuse_other_values
from rconv.model.batchnorm import without_statistics
from rconv.model.blocks import Block, Fused
from rconv.model.build import build
from rconv.model.embedding import entered
from rconv.model.graph import traced
from rconv.model.heads import Head, Hidden
from rconv.model.nodes import Network, UnsupportedModelError, solve_order
from rconv.model.operations import (
    Operation,
    layers_of,
    leading_to,
    logits_of,
    of_layers,
    refuse_bypasses,
    refuse_shared_parameters,
    without_passed,
)
from rconv.model.weights import check_own_parameters, check_weights, copy_of

SEARCHED = 4_096
"""Pixels up to which the input of max pooling is searched for: it takes matrices of their square,
and more steps than a minute holds."""


def read(model: nn.Module, input_shape: Sequence[int]) -> Network:
    """Read a model into the maps from its image to its first Linear, in float64.

    Where these are not all known, it is read as far as a convolution whose output's derivative
    something else determines; what lies above is not needed.

    Parameters
    ----------
    model : Module
        Convolutions, BatchNorm in evaluation, activations, additions, concatenations; Flatten;
        Linear; anything. A Sequential, or a module whose forward `torch.fx` can trace.
    input_shape : sequence of int
        (C, H, W) of one image.

    Raises
    ------
    UnsupportedModelError
        At a layer or step that the attack cannot pass, by name and with the reason, where no entry
        below it is known either.
    """
    shape = check_input_shape(input_shape)
    return read_steps(model, steps_of(model, shape), shape)


def read_steps(model: nn.Module, steps: list[Operation], shape: tuple[int, int, int]) -> Network:
    """`read`, from the steps that `steps_of` has found, or from those that `with_blocks` makes."""
    joined = any(type(step.what) is Fused for step in steps)
    try:
        network = _up_to_the_head(steps, shape)
        refuse_mixed(network)
        if joined or layers_of(model) is None:
            refuse_other_values(model, network)
    except UnsupportedModelError as error:
        if joined:
            raise
        network = entered(model, steps, shape, error)
    return network


def refuse_mixed(network: Network) -> None:
    """Refuse a map that is taken by a block and by a convolution that is none."""
    for i, node in enumerate(network.nodes):
        stages = [stage for _, stage in network.fed_by(i)]
        plain = next((stage for stage in stages if stage.linear), None)
        block = next((stage for stage in stages if not stage.linear), None)
        if plain is not None and block is not None:
            raise UnsupportedModelError(
                f"{plain.name}: takes {node.name} beside {block.name}, which "
                f"{block.layers[-1][0]} follows; put such a layer behind both, or behind none"
            )
        for stage in stages:
            if stage.pool is not None:
                _refuse_pool(stage, node.name, alone=len(network.consumers[i]) == 1)


def _refuse_pool(block: Block, taken: str, *, alone: bool) -> None:
    """Refuse max pooling of maps that are too large, or that other layers take as well."""
    name, pixels = block.layers[-1][0], block.geometry.pixels
    if not alone:
        raise UnsupportedModelError(
            f"{name}: the network branches below {block.name}, at {taken}; the positions of maxima "
            "are searched for where nothing else takes the map"
        )
    if pixels > SEARCHED:
        raise UnsupportedModelError(
            f"{name}: the positions of maxima are searched for in maps of at most {SEARCHED} "
            f"pixels, and {block.name} takes {pixels}"
        )


def steps_of(model: nn.Module, shape: tuple[int, int, int]) -> list[Operation]:
    """The steps of a model's forward pass that do something."""
    layers = layers_of(model)
    check_weights(model)
    if layers is None:
        steps = traced(without_statistics(model), shape)
    else:
        steps = of_layers(layers)
    steps = without_passed(steps)
    refuse_shared_parameters(steps)
    return steps


def _up_to_the_head(steps: list[Operation], shape: tuple[int, int, int]) -> Network:
    """The network, read up to its first Linear."""
    needed = leading_to(steps, len(steps) - 1)
    linears = (i for i in sorted(needed) if type(steps[i].what) is nn.Linear)
    first = next((i for i in linears if 0 in leading_to(steps, i)), None)
    inside = needed if first is None else leading_to(steps, first) - {first}
    nodes, flat = build(steps, sorted(inside), shape)
    if first is None:
        raise UnsupportedModelError(
            "the model has no Linear layer: the attack starts at the gradient of the first one"
        )
    if not flat:
        raise steps[first].refusal("no Flatten stands before the first Linear")
    refuse_bypasses(
        steps, needed - inside - {first}, inside, f"{steps[first].name}, the first Linear"
    )
    network = Network.of(nodes, _head(steps, first, nodes[-1].shape))
    solve_order(network)  # or a refusal
    return network


def check_input_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of one image, (C, H, W), as three positive numbers."""
    try:
        shape = tuple(operator.index(n) for n in input_shape)
    except TypeError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise UnsupportedModelError(
            f"the input shape must be (C, H, W), three positive whole numbers, got {input_shape!r}"
        )
    return shape


def _head(steps: list[Operation], first: int, shape: tuple[int, int, int]) -> Head:
    step, linear = steps[first], steps[first].what
    if linear.in_features != math.prod(shape):
        raise step.refusal(
            f"takes {linear.in_features} features, but its input has the shape {shape}"
        )
    check_own_parameters(step.name, linear, (linear.out_features, linear.in_features))
    last = len(steps) - 1
    if linear.bias is None and last != first:
        raise step.refusal(
            "has no bias and is not the last layer, so that the scale of its input is not in the "
            "gradients"
        )
    return Head(
        step.name,
        copy_of(linear.weight),
        linear.bias is not None,
        last=last == first,
        logits=logits_of(steps),
        hidden=hidden_after(steps, first),
    )


ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.GELU, nn.SiLU)


def hidden_after(steps: Sequence[Operation], first: int) -> Hidden | None:
    """What follows the first Linear, where that is a hidden layer with ReLU or LeakyReLU.

    None where the layers above are no sequence of Linear layers and activations.
    """
    above = [step.what for step in steps[first + 1 :]]
    chain = all(step.inputs == (i,) for i, step in enumerate(steps[first + 1 :], first))
    while above and type(above[-1]) is nn.LogSoftmax:
        above.pop()
    if not chain or len(above) < 2 or type(above[0]) not in (nn.ReLU, nn.LeakyReLU):
        return None
    if not all(type(layer) is nn.Linear or type(layer) in ELEMENTWISE for layer in above):
        return None
    if type(above[1]) is not nn.Linear or above[1].bias is None or type(above[-1]) is not nn.Linear:
        return None
    rest = tuple(_in_float64(module) for module in above[2:])
    second, slope = above[1], getattr(above[0], "negative_slope", 0.0)
    name = steps[first + 2].name
    return Hidden(slope, name, copy_of(second.weight), copy_of(second.bias), rest)


def _in_float64(module: nn.Module) -> nn.Module:
    if type(module) is not nn.Linear:
        return module
    with torch.device("meta"):
        copied = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    copied.weight = nn.Parameter(copy_of(module.weight), requires_grad=False)
    if module.bias is not None:
        copied.bias = nn.Parameter(copy_of(module.bias), requires_grad=False)
    return copied

"""A model as the attack reads it: convolution stages, then the first Linear. Refuses the rest."""

import math
import operator
from collections.abc import Sequence

from torch import nn

from rconv.model.activations import Activation, from_module
from rconv.model.convolution import stage_of
from rconv.model.layers import layers_of
from rconv.model.nodes import Head, Network, UnsupportedModelError
from rconv.model.weights import check_own_parameters, check_weights, copy_of

Layers = list[tuple[str, nn.Module]]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_PASSED = (nn.Identity, *_DROPOUTS)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus)
_READ = (nn.Sequential, nn.Conv2d, nn.Linear, nn.Flatten, *_PASSED, *_ACTIVATIONS)


def read(model: nn.Sequential, input_shape: Sequence[int]) -> Network:
    """Read a Sequential (nested ones included) into stages and head, in float64.

    Parameters
    ----------
    model : Sequential
        Convolutions, each followed by at most one activation; Flatten; Linear; anything.
    input_shape : sequence of int
        (C, H, W) of one image.

    Returns
    -------
    Network
        Stages in the order of the forward pass, and the head; weights are copies in float64.

    Raises
    ------
    UnsupportedModelError
        At a layer that the attack cannot pass, by name and with the reason.
    """
    shape = check_input_shape(input_shape)
    layers = layers_of(model)
    check_weights(model)
    first = next((i for i, (_, m) in enumerate(layers) if type(m) is nn.Linear), len(layers))
    body, rest = layers[:first], layers[first:]
    stages, output = [], shape
    for name, conv, activation in _pairs(body):
        stages.append(stage_of(name, conv, activation, output))
        output = stages[-1].geometry.output
    if not rest:
        raise UnsupportedModelError(
            "the model has no Linear layer: the attack starts at the gradient of the first one"
        )
    if not any(type(m) is nn.Flatten for _, m in body):
        raise UnsupportedModelError(f"{rest[0][0]}: no Flatten stands before the first Linear")
    return Network(tuple(stages), _head(rest, output), shape)


def check_input_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of one image, (C, H, W), as three positive numbers.

    Raises
    ------
    UnsupportedModelError
        If it is anything else.
    """
    try:
        shape = tuple(operator.index(n) for n in input_shape)
    except TypeError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise UnsupportedModelError(
            f"the input shape must be (C, H, W), three positive whole numbers, got {input_shape!r}"
        )
    return shape


def _pairs(layers: Layers) -> list[tuple[str, nn.Conv2d, Activation]]:
    """Each convolution with its name and what follows it."""
    pairs: list[tuple[str, nn.Conv2d, Activation]] = []
    identity = from_module(nn.Identity())
    flat = False
    for name, module in layers:
        if type(module) is nn.Flatten:
            if module.start_dim != 1 or module.end_dim != -1:
                raise UnsupportedModelError(
                    f"{name}: Flatten must keep the batch axis and no other"
                )
            flat = True
        elif type(module) is nn.Conv2d:
            if flat:
                raise UnsupportedModelError(f"{name}: Conv2d stands behind a Flatten")
            pairs.append((name, module, identity))
        elif type(module) not in _PASSED:
            activation = _activation(name, module)
            kind = type(module).__name__
            if not pairs:
                raise UnsupportedModelError(f"{name}: {kind} stands before the first convolution")
            if pairs[-1][2] is not identity:
                raise UnsupportedModelError(
                    f"{name}: {kind} is a second activation after one convolution"
                )
            pairs[-1] = (*pairs[-1][:2], activation)
    return pairs


def _activation(name: str, module: nn.Module) -> Activation:
    kind = type(module)
    base = next((known for known in _READ if isinstance(module, known)), None)
    try:
        if base not in (None, kind):
            raise ValueError(
                f"it is a subclass of {base.__name__}, and what it computes is not known; "
                f"use nn.{base.__name__} itself"
            )
        return from_module(module)
    except ValueError as error:
        reason = "loses what it does not pass on" if "Pool" in kind.__name__ else str(error)
        raise UnsupportedModelError(
            f"{name}: {kind.__name__} between the image and the first Linear is not supported: "
            f"{reason}"
        ) from None


def _head(layers: Layers, shape: tuple[int, ...]) -> Head:
    name, linear = layers[0]
    if linear.in_features != math.prod(shape):
        raise UnsupportedModelError(
            f"{name}: takes {linear.in_features} features, but its input has the shape {shape}"
        )
    check_own_parameters(name, linear, (linear.out_features, linear.in_features))
    rest = [m for _, m in layers[1:] if type(m) not in _PASSED]
    if linear.bias is None and rest:
        raise UnsupportedModelError(
            f"{name}: has no bias and is not the last layer, so that the scale of its input is "
            "not in the gradients"
        )
    last_name, last = [(key, m) for key, m in layers if type(m) is nn.Linear][-1]
    outputs = [linear, *(m for m in rest if type(m) is not nn.LogSoftmax)]
    return Head(
        name,
        copy_of(linear.weight),
        linear.bias is not None,
        last=not rest,
        logits=last_name if outputs[-1] is last else None,
    )

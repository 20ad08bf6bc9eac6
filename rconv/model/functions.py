"""Functions and methods in a forward pass, read as the modules that compute the same."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from rconv.model.nodes import CONCATENATION, SUM

SAME = {
    nn.ReLU: (functional.relu, torch.relu, torch.relu_, functional.relu_, "relu", "relu_"),
    nn.ReLU6: (functional.relu6,),
    nn.Hardtanh: (functional.hardtanh, functional.hardtanh_),
    nn.SiLU: (functional.silu,),
    nn.GELU: (functional.gelu,),
    nn.Mish: (functional.mish,),
    nn.Hardswish: (functional.hardswish,),
    nn.AvgPool2d: (functional.avg_pool2d,),
    nn.MaxPool2d: (functional.max_pool2d, torch.max_pool2d),
    nn.AdaptiveAvgPool2d: (functional.adaptive_avg_pool2d,),
    nn.LeakyReLU: (functional.leaky_relu, functional.leaky_relu_),
    nn.Sigmoid: (functional.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"),
    nn.Tanh: (functional.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"),
    nn.ELU: (functional.elu, functional.elu_),
    nn.Softplus: (functional.softplus,),
    nn.LogSoftmax: (functional.log_softmax, torch.log_softmax, "log_softmax"),
}
"""Module → functions, and names of methods of a tensor, whose arguments are the module's own."""

SHAPES = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def read_function(
    node: fx.Node, values: dict[fx.Node, Any]
) -> tuple[nn.Module | str, list[fx.Node]] | str:
    """Read one call of a function or of a tensor's method.

    `values` are what every step gave on a batch. Returns what it computes, as `Operation` takes it,
    and of what; or why it cannot be read.
    """
    called = node.target
    if called in SHAPES:
        return _flatten(node, values)
    if called in SUMS:
        return _sum(node, values)
    if called in CONCATENATIONS:
        return _concatenation(node, values)
    if called is functional.dropout:
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        return "active dropout has a random mask" if training else (nn.Identity(), [node.args[0]])
    for module, names in SAME.items():
        if called in names:
            return _same(module, node)
    return "the attack does not know this operation"


def _same(module: Callable[..., nn.Module], node: fx.Node) -> tuple[nn.Module, list] | str:
    plain = ("input", "_stacklevel", "dtype")
    options = {k: v for k, v in node.kwargs.items() if k not in plain or (k == "dtype" and v)}
    source = [*node.args[:1], node.kwargs.get("input")][0]
    try:
        return module(*node.args[1:], **options), [source]
    except TypeError:
        return "the attack does not know these arguments"


def _flatten(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[nn.Module, list] | str:
    source = node.args[0]
    before, after = values[source].shape, values[node].shape
    if len(after) == 2 and after[0] == before[0]:
        return nn.Flatten(), [source]
    if after == before:
        return nn.Identity(), [source]
    return f"makes the shape {tuple(after[1:])} of {tuple(before[1:])}: only flattening is known"


def _sum(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[str, list] | str:
    terms = list(node.args)
    if node.kwargs or len(terms) != 2 or not all(isinstance(t, fx.Node) for t in terms):
        return "adds something other than two maps"
    if any(getattr(values[t], "shape", None) != values[node].shape for t in terms):
        return "adds maps of different shapes"
    return SUM, terms


def _concatenation(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[str, list] | str:
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not all(isinstance(part, fx.Node) for part in parts):
        return "concatenates something other than maps"
    if along not in (1, 1 - values[node].dim()) or values[node].dim() != 4:
        return "concatenates along another axis than the channels"
    return CONCATENATION, list(parts)

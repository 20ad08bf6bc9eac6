"""A model written as code: run once with symbols (`torch.fx`) and once on a batch of images."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from rconv.model.graph import first_line, graph_of, name_of, values_of
from rconv.model.nodes import CONCATENATION, SUM, UnsupportedModelError
from rconv.model.operations import Operation
from rconv.model.wrappers import shapes_alone, without_values

BATCH = 3
"""Images that the model is run on, to see shapes: a number that no layer is likely to have."""


def traced(model: nn.Module, shape: tuple[int, int, int]) -> list[Operation]:
    """The steps of a model's forward pass.

    The image comes first, the output last. Raises UnsupportedModelError if the model cannot be
    traced, with the line, or takes no images of the shape (C, H, W).
    """
    needed = graph_of(model)
    values = _values(model, needed, shape)
    operations: list[Operation] = []
    place: dict[fx.Node, int] = {}
    for node in needed:
        if node.op == "output":
            operations.append(Operation("the output", nn.Identity(), (place[node.args[0]],)))
        elif node.op == "placeholder" and not place:
            place[node] = 0
            operations.append(Operation("the image", None, ()))
        elif _holds_tensors(values[node]):
            operation = _operation(model, node, values, place)
            place[node] = len(operations)
            operations.append(operation)
    return operations


def _values(
    model: nn.Module, nodes: list[fx.Node], shape: tuple[int, int, int]
) -> dict[fx.Node, Any]:
    """What every step gives on a batch: shapes alone, or values where shapes depend on these."""
    example = next(model.parameters(), torch.empty(0))
    try:
        with shapes_alone():
            batch = torch.zeros(BATCH, *shape, dtype=example.dtype)
            return values_of(without_values(model), nodes, batch)
    except Exception:  # whatever the model's own code does with tensors without values
        batch = torch.zeros(BATCH, *shape, dtype=example.dtype, device=example.device)
    try:
        return values_of(model, nodes, batch)
    except Exception as error:
        raise UnsupportedModelError(
            f"{name_of(model)} takes no image of the shape {shape}: {first_line(error)}"
        ) from None


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_holds_tensors, value))
    return torch.is_tensor(value)


def _operation(
    model: nn.Module, node: fx.Node, values: dict[fx.Node, Any], place: dict[fx.Node, int]
) -> Operation:
    line = node.meta.get("line", "")
    if node.op == "call_module":
        name, found = node.target, (model.get_submodule(node.target), node.all_input_nodes)
    elif node.op == "get_attr":
        name, found = node.target, "a tensor of the model itself is no map that the attack knows"
    else:
        name, found = _path(node), read_function(node, values)
    if isinstance(found, str):
        what, sources = found, [taken for taken in node.all_input_nodes if taken in place]
    else:
        what, sources = found
    if any(source not in place for source in sources):
        what = "takes something that is made of no image"
        sources = [taken for taken in node.all_input_nodes if taken in place]
    return Operation(name, what, tuple(place[source] for source in sources), line)


def _path(node: fx.Node) -> str:
    """The step's own name behind that of the module whose forward it stands in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    inside = stack[-1] if stack else ("", None)
    path, kind = inside if isinstance(inside, tuple) else ("", inside)
    kind = getattr(kind, "__name__", "")
    return f"{path}: {kind}'s {node.name}" if path else node.name


SAME = {
    nn.ReLU: (functional.relu, torch.relu, torch.relu_, functional.relu_, "relu", "relu_"),
    nn.ReLU6: (functional.relu6,),
    nn.Hardtanh: (functional.hardtanh, functional.hardtanh_),
    nn.SiLU: (functional.silu,),
    nn.GELU: (functional.gelu,),
    nn.Mish: (functional.mish,),
    nn.Hardswish: (functional.hardswish,),
    nn.AvgPool2d: (functional.avg_pool2d,),
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
    """Read one call.

    The node calls a function or a tensor's method; `values` holds the results of all steps on a
    batch. Returns what it computes, as `Operation` takes it, and its sources; or why it cannot be
    read.
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

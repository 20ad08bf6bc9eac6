"""A model written as code: run once with symbols (`torch.fx`) and once on a batch of images."""

import inspect
import operator
import os
import traceback
from typing import Any

import torch
from torch import Tensor, fx, nn

from rconv.model.functions import read_function
from rconv.model.layers import is_layer
from rconv.model.nodes import UnsupportedModelError
from rconv.model.operations import Operation

BATCH = 3
"""Images that the model is run on, to see shapes: a number that no layer is likely to have."""


def traced(model: nn.Module, shape: tuple[int, int, int]) -> list[Operation]:
    """The steps of a model's forward pass.

    Parameters
    ----------
    model : Module
        Any that `torch.fx` can trace.
    shape : tuple of int
        (C, H, W) of one image.

    Returns
    -------
    list of Operation
        The image first, the output last.

    Raises
    ------
    UnsupportedModelError
        If the model cannot be traced, with the line, or does not take such images.
    """
    graph = _graph(model)
    needed = _needed(graph)
    values = _values(model, needed, shape)
    operations: list[Operation] = []
    place: dict[fx.Node, int] = {}
    for node in needed:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise UnsupportedModelError(f"{_name(model)} returns more than one tensor")
            operations.append(Operation("the output", nn.Identity(), (place[node.args[0]],)))
        elif node.op == "placeholder" and not place:
            place[node] = 0
            operations.append(Operation("the image", None, ()))
        elif torch.is_tensor(values[node]):
            own = _operation(model, node, values, place)
            place[node] = len(operations)
            operations.append(own)
    return operations


class _Tracer(fx.Tracer):
    """Goes into everything but PyTorch's own layers and what claims to be one."""

    # Not record_stack_traces, which imports PyTorch's compiler, 7 s at the first call.
    def create_node(self, *args: Any, **options: Any) -> fx.Node:
        node = super().create_node(*args, **options)
        node.meta["line"] = _line(traceback.extract_stack())
        return node

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_layer(module)


def _graph(model: nn.Module) -> fx.Graph:
    arguments = list(inspect.signature(model.forward).parameters.values())[1:]
    fixed = {a.name: a.default for a in arguments if a.default is not a.empty}
    named = [a for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    if len(named) > len(fixed):
        raise UnsupportedModelError(f"{_name(model)}: forward must take images and nothing else")
    try:
        graph = _Tracer().trace(model, concrete_args=fixed or None)
    except Exception as error:  # whatever the model's own code does with symbols
        line = _line(traceback.extract_tb(error.__traceback__))
        place = f" ({line})" if line else ""
        raise UnsupportedModelError(
            f"{_name(model)} cannot be traced: {_first_line(error)}{place}"
        ) from None
    return graph


def _needed(graph: fx.Graph) -> list[fx.Node]:
    """The image, and the nodes that the output depends on, in order."""
    waiting, found = [node for node in graph.nodes if node.op == "output"], set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    image = next(node for node in graph.nodes if node.op == "placeholder")
    return [node for node in graph.nodes if node in found or node is image]


def _values(model: nn.Module, nodes: list[fx.Node], shape: tuple[int, ...]) -> dict[fx.Node, Any]:
    """What every step gives on a batch."""
    values: dict[fx.Node, Any] = {}
    example = next(model.parameters(), torch.empty(0))
    batch = torch.zeros(BATCH, *shape, dtype=example.dtype, device=example.device)
    try:
        with torch.no_grad():
            for node in nodes:
                values[node] = _run(model, node, values, batch)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{_name(model)} takes no image of the shape {shape}: {_first_line(error)}"
        ) from None
    return values


def _run(model: nn.Module, node: fx.Node, values: dict[fx.Node, Any], batch: Tensor) -> Any:
    """What one step gives. Not fx.Interpreter, which imports PyTorch's compiler at an error."""
    if node.op == "placeholder":
        return batch
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "output":
        return args[0]
    if node.op == "call_function":
        return node.target(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.op == "call_module":
        return model.get_submodule(node.target)(*args, **kwargs)
    return operator.attrgetter(node.target)(model)


def _operation(
    model: nn.Module, node: fx.Node, values: dict[fx.Node, Any], place: dict[fx.Node, int]
) -> Operation:
    line = node.meta.get("line", "")
    if node.op == "call_module":
        name, found = node.target, (model.get_submodule(node.target), list(node.args))
    elif node.op == "get_attr":
        name, found = node.target, "a tensor of the model itself is no map that the attack knows"
    else:
        name, found = _path(node), read_function(node, values)
    if isinstance(found, str):
        what, sources = found, [own for own in node.all_input_nodes if own in place]
    else:
        what, sources = found
    if any(source not in place for source in sources):
        what, sources = "takes something that is made of no image", []
    return Operation(name, what, tuple(place[source] for source in sources), line)


def _path(node: fx.Node) -> str:
    """The step's own name behind that of the module whose forward it stands in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    inside = stack[-1] if stack else ("", None)
    path, kind = inside if isinstance(inside, tuple) else ("", inside)
    kind = getattr(kind, "__name__", "")
    return f"{path}: {kind}'s {node.name}" if path else node.name


def _line(frames: traceback.StackSummary) -> str:
    """Line and text of the last `forward` in a stack that is not PyTorch's."""
    package = os.path.dirname(torch.__file__)
    own = [f for f in frames if f.name == "forward" and not f.filename.startswith(package)]
    return f"line {own[-1].lineno} of forward: {own[-1].line}" if own else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _name(model: nn.Module) -> str:
    return type(model).__name__

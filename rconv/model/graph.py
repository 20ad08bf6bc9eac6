"""A model written as code: run once with symbols (`torch.fx`) and, step by step, on images."""

import inspect
import linecache
import operator
import os
import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from rconv.model.functions import read_function
from rconv.model.nodes import UnsupportedModelError
from rconv.model.operations import Operation, dependencies, is_layer
from rconv.model.wrappers import shapes_alone, tensor_of

_PACKAGE = os.path.dirname(torch.__file__)

BATCH = 3
"""Images that the model is run on, to see shapes: a number that no layer is likely to have."""


class _Tracer(fx.Tracer):
    """Goes into everything but PyTorch's own layers and what claims to be one."""

    # Not record_stack_traces, which imports PyTorch's compiler, 7 s at the first call.
    def create_node(self, *args: Any, **options: Any) -> fx.Node:
        node = super().create_node(*args, **options)
        node.meta["line"] = _line_of(sys._getframe(1))
        return node

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_layer(module)


def graph_of(model: nn.Module) -> list[fx.Node]:
    """The steps of a model's forward pass, as symbols.

    Returns the image and everything that the output depends on, in order. Raises
    UnsupportedModelError, with the line, if `torch.fx` cannot trace the model.
    """
    image, *arguments = inspect.signature(model.forward).parameters.values() or (None,)
    fixed = {a.name: a.default for a in arguments if a.default is not a.empty}
    named = [a for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    if image is None or image.kind is image.VAR_POSITIONAL or len(named) > len(fixed):
        raise UnsupportedModelError(
            f"{type(model).__name__}: forward must take images and nothing else; "
            "wrap it in a module whose forward does"
        )
    try:
        graph = _Tracer().trace(model, concrete_args=fixed or None)
    except Exception as error:  # whatever the model's own code does with symbols
        line = _line_where(error)
        place = f" ({line})" if line else ""
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be traced: {first_line(error)}{place}"
        ) from None
    end = next(node for node in graph.nodes if node.op == "output")
    end.args = (_returned(model, end.args[0]),)
    image = next(node for node in graph.nodes if node.op == "placeholder")
    needed = before(graph.nodes, end)
    return needed if image in needed else [image, *needed]


def before(
    nodes: Iterable[fx.Node], end: fx.Node, *, without: fx.Node | None = None
) -> list[fx.Node]:
    """The steps that a step depends on, itself included.

    `without` leaves out one step, with what only it depends on.
    """
    found = dependencies(end, lambda node: node.all_input_nodes, lambda node: node is without)
    return [node for node in nodes if node in found]


def sees(node: fx.Node, image: fx.Node) -> bool:
    """Whether a step depends on what the image shows, and not on its shape alone."""
    return image in dependencies(node, lambda step: step.all_input_nodes, _is_shape)


def _is_shape(node: fx.Node) -> bool:
    return node.target in ("size", "dim", "numel") or (
        node.target is getattr and node.args[1] in ("shape", "device", "dtype", "ndim")
    )


def values_of(
    model: nn.Module,
    nodes: list[fx.Node],
    images: Tensor,
    given: Mapping[fx.Node, Any] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[fx.Node, Any]:
    """What every step gives.

    The nodes are in order, with all that they take; images are (N, C, H, W). `given` holds the
    results of some steps, `parameters` replaces some parameters. Raises PyTorch's RuntimeError
    where shapes or dtypes do not fit.
    """
    values: dict[fx.Node, Any] = dict(given or {})
    with torch.no_grad():
        for node in nodes:
            if node not in values:
                values[node] = _run(model, node, values, images, parameters or {})
    return values


def _run(
    model: nn.Module,
    node: fx.Node,
    values: dict[fx.Node, Any],
    images: Tensor,
    parameters: Mapping[str, Tensor],
) -> Any:
    """What one step gives. Not fx.Interpreter, which imports PyTorch's compiler at an error."""
    if node.op == "placeholder":
        return images
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "output":
        return args[0]
    if node.op == "call_function":
        return node.target(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.op == "call_module":
        prefix = f"{node.target}."
        replaced = {
            k.removeprefix(prefix): p for k, p in parameters.items() if k.startswith(prefix)
        }
        return functional_call(model.get_submodule(node.target), replaced, args, kwargs)
    return parameters.get(node.target, operator.attrgetter(node.target)(model))


def _returned(model: nn.Module, output: Any) -> fx.Node:
    """The step that is taken for the output, see `tensor_of`."""
    while isinstance(output, fx.Node) and isinstance(output.target, type):
        # A dataclass or a named tuple, which a trace makes of its entries.
        names = getattr(output.target, "_fields", range(len(output.args)))
        output = {**dict(zip(names, output.args, strict=True)), **output.kwargs}
        output = tensor_of(output)
    found = tensor_of(output)
    if found is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} returns no tensor that depends on images"
        )
    return found


def _line_where(error: Exception) -> str:
    """Line and text of the last `forward` that an error went through and that is not PyTorch's."""
    found, step = "", error.__traceback__
    while step is not None:
        found = _line(step.tb_frame, step.tb_lineno) or found
        step = step.tb_next
    return found


def _line_of(frame: FrameType | None) -> str:
    """Line and text of the innermost `forward` that is not PyTorch's."""
    while frame is not None and not _line(frame, frame.f_lineno):
        frame = frame.f_back
    return "" if frame is None else _line(frame, frame.f_lineno)


def _line(frame: FrameType, number: int | None) -> str:
    name = frame.f_code.co_filename
    if number is None:  # torch.fx of 2.4 runs copies of the code that have none
        return ""
    if frame.f_code.co_name != "forward" or name.startswith(_PACKAGE):
        return ""
    return f"line {number} of forward: {linecache.getline(name, number, frame.f_globals).strip()}"


def first_line(error: Exception) -> str:
    """Of its message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    try:
        with shapes_alone(model, BATCH, shape) as (copied, batch):
            return values_of(copied, nodes, batch)
    except Exception:  # whatever the model's own code does with tensors without values
        example = next(model.parameters(), torch.empty(0))
        batch = torch.zeros(BATCH, *shape, dtype=example.dtype, device=example.device)
    try:
        return values_of(model, nodes, batch)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no image of the shape {shape}: {first_line(error)}"
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

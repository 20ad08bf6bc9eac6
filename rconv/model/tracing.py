"""A model written as code: run once with symbols (`torch.fx`) and once on a batch of images."""

from typing import Any

import torch
from torch import fx, nn

from rconv.model.functions import read_function
from rconv.model.graph import first_line, graph_of, name_of, values_of
from rconv.model.nodes import UnsupportedModelError
from rconv.model.operations import Operation
from rconv.model.wrappers import shapes_alone

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

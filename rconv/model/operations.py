"""A model as the steps of its forward pass, whether it is written as layers or as code.

A Sequential computes its layers one after the other, and a layer of PyTorch's own class computes
what its class says, unless something intervenes. Whatever can is refused here, by name. What is
no Sequential is traced, see `rconv.model.graph`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from rconv.model.nodes import UnsupportedModelError

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
PASSED = (nn.Identity, *DROPOUTS)
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus
)  # fmt: skip
READ = (
    nn.Sequential, nn.Conv2d, nn.Linear, nn.Flatten, nn.BatchNorm2d, *PASSED, *ACTIVATIONS
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One step of a forward pass.

    `what` is the module that computes it, of PyTorch's own class or unknown; SUM or CONCATENATION;
    None for the image; any other text says why it is not known. `inputs` are the steps that it
    takes, as indices into the list of all. `line` is where it stands in the model's code, "" for a
    layer of a Sequential.
    """

    name: str
    what: nn.Module | str | None
    inputs: tuple[int, ...]
    line: str = ""

    def refusal(self, reason: str) -> UnsupportedModelError:
        """The error that names this step, and its line."""
        place = f" ({self.line})" if self.line else ""
        return UnsupportedModelError(f"{self.name}: {reason}{place}")


def of_layers(layers: list[tuple[str, nn.Module]]) -> list[Operation]:
    """The steps of a Sequential: each layer takes the one before.

    The image comes first.
    """
    steps = [Operation("the image", None, ())]
    return steps + [Operation(name, layer, (i,)) for i, (name, layer) in enumerate(layers)]


def without_passed(operations: list[Operation]) -> list[Operation]:
    """The steps that do something; those that take what passes through take its source."""
    left: list[Operation] = []
    place: list[int] = []
    for operation in operations:
        inputs = tuple(place[i] for i in operation.inputs)
        if type(operation.what) in PASSED:
            place.append(inputs[0])
        else:
            place.append(len(left))
            left.append(Operation(operation.name, operation.what, inputs, operation.line))
    return left


def dependencies(end: Any, inputs: Callable, ends: Callable = lambda step: False) -> set:
    """What a step depends on, itself included; not through steps of which `ends` is true."""
    found, waiting = set(), [end]
    while waiting:
        step = waiting.pop()
        if step not in found and not ends(step):
            found.add(step)
            waiting.extend(inputs(step))
    return found


def leading_to(operations: list[Operation], end: int) -> set[int]:
    """Indices of the steps that step `end` depends on, itself included."""
    return dependencies(end, lambda i: operations[i].inputs)


def refuse_shared_parameters(operations: list[Operation]) -> None:
    """Refuse a parameter that serves twice."""
    owners: dict[nn.Parameter, Operation] = {}
    for operation in operations:
        for parameter in (
            operation.what.parameters() if isinstance(operation.what, nn.Module) else ()
        ):
            if owners.setdefault(parameter, operation) is not operation:
                raise operation.refusal(
                    f"shares a parameter with {owners[parameter].name}, whose gradient is the "
                    "sum over both layers"
                )


def refuse_bypasses(steps: list[Operation], behind: set[int], inside: set[int], end: str) -> None:
    """Refuse a map that reaches the loss other than through where the network ends.

    `behind` are the steps that are not read, `inside` those that are.
    """
    for i in sorted(behind):
        for j in steps[i].inputs:
            if j in inside:
                raise steps[i].refusal(
                    f"takes {steps[j].name}, which so reaches the loss by a path around {end}: "
                    "its derivative is not known"
                )


def logits_of(steps: list[Operation]) -> str | None:
    """Name of the Linear that makes the logits; None where more than LogSoftmax follows it."""
    last = len(steps) - 1
    while type(steps[last].what) is nn.LogSoftmax:
        (last,) = steps[last].inputs
    return steps[last].name if type(steps[last].what) is nn.Linear else None


_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}
_COMPUTES = {"forward", "_conv_forward", "__call__", "_call_impl"}
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """List the layers of a Sequential, those of nested ones included.

    Returns names and layers in the order of the forward pass; a layer that serves twice is there
    twice. None if the model is no plain Sequential, or has layers before its first Linear that are
    neither PyTorch's own nor a variant of one that the attack knows. Raises UnsupportedModelError
    if it is no module, or one has hooks, is parametrized, or is active dropout.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"{type(model).__name__} is no torch.nn.Module: give a model")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "the model is compiled by TorchScript, which hides its layers; give the module that it "
            "was made from"
        )
    for name, module in model.named_modules():
        _refuse_intervention(name or "the model", module)
    if not _is_plain(model):
        return None
    layers = list(_flatten(model))
    for _, layer in layers:
        if type(layer) is nn.Linear:
            break
        if not is_layer(layer):
            return None
    return layers


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's own layers, or claims to be one that is known."""
    if isinstance(module, nn.Sequential):
        return False
    return isinstance(module, READ) or type(module).__module__.startswith("torch.nn.")


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _flatten(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # Not named_children: it lists a module that serves twice only once.
    for name, module in model._modules.items():
        if module is None:
            raise UnsupportedModelError(f"{prefix}{name}: is None, which computes nothing")
        if _is_plain(module):
            yield from _flatten(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _refuse_intervention(name: str, module: nn.Module) -> None:
    """Refuse what changes a layer's output or gradient behind the back of its class."""
    kind = type(module).__name__.removeprefix("Parametrized")
    if is_parametrized(module):
        raise UnsupportedModelError(
            f"{name}: {kind} is parametrized, so that the gradients are not those of its weights; "
            "call torch.nn.utils.parametrize.remove_parametrizations on both sides first"
        )
    if getattr(module, "has_uninitialized_params", bool)():
        raise UnsupportedModelError(f"{name}: {kind} is not initialised yet: run the model once")
    for method in _COMPUTES & vars(module).keys():
        raise UnsupportedModelError(f"{name}: the {method} of this {kind} has been replaced")
    for attribute, what in _HOOKS.items():
        for hook in getattr(module, attribute).values():
            raise UnsupportedModelError(
                f"{name}: {kind} has a {what} ({getattr(hook, '__name__', type(hook).__name__)}), "
                "which can change what is computed; remove it on both sides first"
            )
    for key, parameter in module.named_parameters(recurse=False):
        if any(getattr(parameter, attribute, None) for attribute in _PARAMETER_HOOKS):
            raise UnsupportedModelError(
                f"{name}: its {key} has a hook that can change the gradient; remove it first"
            )
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
        raise UnsupportedModelError(
            f"{name}: {kind} is active, its random mask is not in the gradients; "
            "call model.eval() on both sides first"
        )

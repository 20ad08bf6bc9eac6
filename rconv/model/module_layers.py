"""The layers of a model in the order of the forward pass, and what makes this order untrue.

A Sequential computes its layers one after the other, and a layer of PyTorch's own class computes
what its class says, unless something intervenes. Whatever can is refused here, by name. What is
no Sequential is traced, see `rconv.model.tracing`.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from rconv.model.nodes import UnsupportedModelError
from rconv.model.operations import READ

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

    Parameters
    ----------
    model : Module
        The model.

    Returns
    -------
    list of (str, Module) or None
        Name and layer, in the order of the forward pass. A layer that serves twice is there
        twice. None if the model is no plain Sequential, or has layers before its first Linear
        that are neither PyTorch's own nor a variant of one that the attack knows.

    Raises
    ------
    UnsupportedModelError
        If it is no module, or one has hooks, is parametrized, or is active dropout.
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
                f"{name}: {kind} has a {what} ({_name_of(hook)}), which can change what is "
                "computed; remove it on both sides first"
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


def _name_of(hook: object) -> str:
    return getattr(hook, "__name__", type(hook).__name__)

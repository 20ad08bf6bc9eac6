"""The layers of a model in the order of the forward pass, and what makes this order untrue.

A Sequential computes its layers one after the other, and a layer of PyTorch's own class computes
what its class says, unless something intervenes. Whatever can is refused here, by name.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from rconv.model.nodes import UnsupportedModelError

_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}
_COMPUTES = {"forward", "_conv_forward", "__call__", "_call_impl"}
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the layers of a Sequential, those of nested ones included.

    A Sequential with a `forward` of its own counts as one layer, whose inside is not known.

    Parameters
    ----------
    model : Module
        The model.

    Returns
    -------
    list of (str, Module)
        Name and layer, in the order of the forward pass. A layer that serves twice is there
        twice.

    Raises
    ------
    UnsupportedModelError
        If the model is no plain Sequential, has hooks or parametrized layers, active dropout,
        or a parameter that serves twice.
    """
    if not isinstance(model, nn.Sequential):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no Sequential: write the model as nn.Sequential, so that "
            "the order of its layers is known (branches and skip connections are not supported)"
        )
    if not _is_plain(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is a Sequential with a forward of its own, and what that "
            "computes is not known: use nn.Sequential itself"
        )
    for name, module in model.named_modules():
        _refuse_intervention(name or "the model", module)
    layers = list(_flatten(model))
    _refuse_shared_parameters(layers)
    return layers


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


def _refuse_shared_parameters(layers: list[tuple[str, nn.Module]]) -> None:
    owners: dict[nn.Parameter, str] = {}
    for name, module in layers:
        for parameter in module.parameters():
            if owners.setdefault(parameter, name) != name:
                raise UnsupportedModelError(
                    f"{name}: shares a parameter with {owners[parameter]}, whose gradient is the "
                    "sum over both layers"
                )

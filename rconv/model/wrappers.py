"""Models as they are run: without wrappers, as copies that share weights, or for shapes alone."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

PREFERRED = ("logits", "out")
"""Entries that a model's output is looked for in first, where it returns several tensors."""

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def shared_copy(model: nn.Module, replaced: Mapping[int, object] | None = None) -> nn.Module:
    """A copy of a model's modules that shares all parameters and buffers with it.

    Hooks and buffers can be changed in the copy, and no weight is copied. `replaced` maps the `id`
    of a module to what takes its place in the copy.
    """
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {**{id(tensor): tensor for tensor in tensors}, **(replaced or {})})


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `DataParallel`, `DistributedDataParallel` or `torch.compile`.

    The model may be wrapped as a whole, in parts, or not at all. The result shares its parameters,
    whose names have no `module.` and no `_orig_mod.`.
    """
    while isinstance(model, nn.Module) and _inside(model) is not None:
        model = _inside(model)
    if not isinstance(model, nn.Module):
        return model
    inside = {
        id(module): _inside(module) for module in model.modules() if _inside(module) is not None
    }
    return shared_copy(model, {i: unwrapped(m) for i, m in inside.items()}) if inside else model


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper is around; None where a module is no wrapper."""
    if isinstance(module, PARALLEL):
        return module.module
    # Known by its name: to import its class would import PyTorch's compiler, which takes seconds.
    compiled = type(module).__module__.startswith("torch._dynamo")
    return module._modules.get("_orig_mod") if compiled else None


def unwrapped_name(name: str, known: Collection[str]) -> str:
    """A parameter's name without what wrappers add, if that is a known one; else as it is."""
    if name in known or not isinstance(name, str):
        return name
    parts = name.split(".")
    for wrapper in ({"_orig_mod"}, {"_orig_mod", "module"}):
        plain = ".".join(part for part in parts if part not in wrapper)
        if plain in known:
            return plain
    return name


def tensor_of(output: Any) -> Any:
    """The one entry of a model's output that is taken for it.

    The output is a tensor, or a mapping, a sequence or a dataclass of tensors (or of what stands
    for one in a trace). Of several, the entry `logits` or `out` is taken, or else the first; None
    if there is none.
    """
    entries = list(_entries(output))
    named = {name: entry for name, entry in entries if name in PREFERRED}
    found = next((named[name] for name in PREFERRED if name in named), None)
    return found if found is not None else next((entry for _, entry in entries), None)


def _entries(output: Any) -> Iterator[tuple[str, Any]]:
    """Names and tensors, or traced steps, of an output."""
    if isinstance(output, (Tensor, torch.fx.Node)):
        yield "", output
    elif isinstance(output, Mapping):
        entries = ((str(name), tensor_of(entry)) for name, entry in output.items())
        yield from ((name, entry) for name, entry in entries if entry is not None)
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", [""] * len(output))
        yield from _entries_of(names, output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output)]
        yield from _entries_of(names, [getattr(output, name) for name in names])


def _entries_of(names: Collection[str], values: Collection[Any]) -> Iterator[tuple[str, Any]]:
    for name, value in zip(names, values, strict=True):
        entry = tensor_of(value)
        if entry is not None:
            yield name, entry


GETTERS = ("__get__", "size", "dim", "numel", "stride", "is_contiguous")
"""Calls that return no entry of a tensor: nothing is converted for them."""


class InFloat64(TorchFunctionMode):
    """Within it, every operation takes its floating-point tensors as float64.

    So a model of any dtype is run in float64 without a second copy of its weights.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in GETTERS:
            found = func(*args, **(kwargs or {}))
            return torch.float64 if func is _DTYPE and found.is_floating_point else found
        args, kwargs = tree_map(_doubled, (args, kwargs or {}))
        return func(*args, **kwargs)


_DTYPE = Tensor.dtype.__get__


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    real = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float64 if real else value


LARGEST = 2**19, 2**24
"""Numbers in a batch of images, and in a model's parameters, up to which shapes are seen by running
the model: three images of 3 × 224 × 224 through resnet18 take one CPU second."""


@contextmanager
def shapes_alone(
    model: nn.Module, count: int, shape: Sequence[int]
) -> Iterator[tuple[nn.Module, Tensor]]:
    """A copy of a model and black images, (count, *shape), to see the shapes that it computes.

    Larger ones than `LARGEST`, images or models, have no values: PyTorch's meta device, whose first
    use imports the compiler, 4 to 7 CPU seconds.
    """
    copied, first = shared_copy(model), next(model.parameters(), torch.empty(0))
    sizes = count * prod(shape), sum(p.numel() for p in model.parameters())
    large = any(size > most for size, most in zip(sizes, LARGEST, strict=True))
    device = torch.device("meta") if large else first.device
    for module in copied.modules():
        for own in (module._parameters, module._buffers) if large else (module._buffers,):
            for name, value in own.items():  # a BatchNorm in training mode changes its buffers
                own[name] = value if value is None else value.detach().to(device, copy=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), device:
        yield copied, torch.zeros(count, *shape, dtype=first.dtype)

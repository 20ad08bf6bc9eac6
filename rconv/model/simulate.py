"""Runs of a model that leave it as it is: for shapes alone, and in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from rconv.model.wrappers import shared_copy

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


def without_values(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters and buffers have shapes and no values.

    Under `torch.device("meta")` it computes the shapes of what the model computes.
    """
    copied = shared_copy(model)
    for module in copied.modules():
        for own in (module._parameters, module._buffers):
            for name, value in own.items():
                own[name] = value if value is None else torch.empty_like(value, device="meta")
    return copied


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within it, new tensors have no values either."""
    with torch.device("meta"), torch.no_grad():
        yield

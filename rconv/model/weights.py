"""Weights that can be computed with."""

import math

import torch
from torch import Tensor, nn

from rconv.model.nodes import UnsupportedModelError

LARGEST = 1e100
"""What the largest weights of all layers may multiply to. A gradient passes every layer, and the
equations take squares of what arrives; float64 ends at 1.8e308, which leaves 1e108 for the sums."""


def check_weights(model: nn.Module) -> None:
    """Refuse a model whose parameters are no numbers, or numbers that overflow.

    Raises UnsupportedModelError, naming the parameter, if it has no values (on the meta device), is
    sparse, not real, NaN, infinite, or so large that float64 overflows.
    """
    largest: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        _check_kind(name, parameter)
        values = parameter.detach()
        values = values.float() if values.itemsize < 2 else values  # eight bits have no extremes
        size = max(abs(float(end)) for end in values.aminmax())
        if not math.isfinite(size):
            raise UnsupportedModelError(f"{name} has NaN or infinite entries")
        layer = name.rpartition(".")[0]
        largest[layer] = max(1.0, size, largest.get(layer, 1.0))
        if math.prod(largest.values()) > LARGEST:
            raise UnsupportedModelError(
                f"{name} has entries up to {size:.1e}: what passes the layers overflows"
            )


def _check_kind(name: str, parameter: Tensor) -> None:
    if parameter.numel() == 0:
        raise UnsupportedModelError(f"{name} is empty")
    if parameter.is_meta:
        raise UnsupportedModelError(f"{name} has no values, it is on the meta device")
    if parameter.layout is not torch.strided:
        raise UnsupportedModelError(f"{name} is a sparse tensor: use its to_dense()")
    if not parameter.is_floating_point():
        raise UnsupportedModelError(f"{name} is {parameter.dtype}: real numbers are needed")


def check_own_parameters(name: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a layer whose weight or bias is no parameter of its own, of the shape it declares."""
    parameters = dict(module.named_parameters(recurse=False))
    for key, expected in (("weight", shape), ("bias", shape[:1])):
        value = getattr(module, key, None)
        if key == "bias" and value is None:
            continue
        if parameters.get(key) is not value or value is None:
            raise UnsupportedModelError(f"{name}: its {key} is no parameter of its own")
        if tuple(value.shape) != expected:
            raise UnsupportedModelError(
                f"{name}: its {key} has the shape {tuple(value.shape)}, expected {expected}"
            )


def copy_of(parameter: Tensor) -> Tensor:
    """Copy a parameter to float64: what happens to the model later does not reach it."""
    return parameter.detach().to(torch.float64, copy=True)

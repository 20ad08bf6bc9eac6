"""Does the model compute what was read? Both are run on a random image."""

import contextlib

import torch
from torch import nn

from rconv.model.batchnorm import without_statistics
from rconv.model.geometry import Stage
from rconv.model.graph import first_line
from rconv.model.heads import ConvEntry
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.wrappers import InFloat64, shared_copy

SAME = 1e-9
"""Relative difference of two computations of the same, in float64."""


class _Reached(Exception):
    """The rest of the model need not be run."""


def refuse_other_values(model: nn.Module, network: Network) -> None:
    """Refuse a model that computes something else than what was read, on a random image.

    A trace does not see what changes a map in place after it was taken, nor what is random.
    """
    copied = shared_copy(without_statistics(model))
    shape = (2, *network.input_shape)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = image.to(next(model.parameters(), torch.empty(0)).device)
    maps = network.maps(image)
    expected = {network.head.name: maps[-1]}
    if isinstance(network.head, ConvEntry):
        taken = [node for node in network.nodes if isinstance(node.does, Stage)]
        expected = {node.does.name: maps[node.inputs[0]] for node in taken}
    found: dict[str, torch.Tensor] = {}

    def look(name: str, args: tuple[torch.Tensor]) -> None:
        found[name] = args[0].flatten(1).clone()
        if found.keys() == expected.keys():
            raise _Reached

    for name in expected:
        copied.get_submodule(name).register_forward_pre_hook(lambda _, args, n=name: look(n, args))
    try:
        with torch.no_grad(), InFloat64(), contextlib.suppress(_Reached):
            copied(image)
    except Exception as error:  # whatever the model's own code raises
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be run in float64: {first_line(error)}"
        ) from None
    for name, value in expected.items():
        value = value.flatten(1)
        if name not in found or not (found[name] - value).norm() <= SAME * value.norm():
            raise UnsupportedModelError(
                f"{type(model).__name__} computes something else than the steps of its forward "
                "say, perhaps since a map is changed in place after another step has taken it; "
                "write its operations so that none is in place"
            )

"""Does the model compute what was read? Both are run on a random image."""

import contextlib
import copy

import torch
from torch import nn

from rconv.model.ends import Entry
from rconv.model.nodes import Network, UnsupportedModelError

SAME = 1e-9
"""Relative difference of two computations of the same, in float64."""


class _Reached(Exception):
    """The rest of the model need not be run."""


def refuse_other_values(model: nn.Module, network: Network) -> None:
    """Refuse a model that computes something else than what was read, on a random image.

    A trace does not see what changes a map in place after it was taken, nor what is random.

    Parameters
    ----------
    model : Module
        The model.
    network : Network
        What was read.

    Raises
    ------
    UnsupportedModelError
        If the input of the first Linear differs, or the output of the convolution that is entered.
    """
    own = copy.deepcopy(model).double()
    shape = (2, *network.input_shape)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = image.to(next(model.parameters()).device)
    found: list[torch.Tensor] = []
    end = own.get_submodule(network.head.name)

    def stop(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        found.append(output)
        raise _Reached

    if isinstance(network.head, Entry):
        end.register_forward_hook(stop)
    else:
        end.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.no_grad():
        with contextlib.suppress(_Reached):
            own(image)
        expected = network.evaluate(image).flatten(1)
    if len(found) != 1 or not (found[0].flatten(1) - expected).norm() <= SAME * expected.norm():
        raise UnsupportedModelError(
            f"{type(model).__name__} computes something else than the steps of its "
            "forward say: perhaps a map is changed in place after another step has taken it"
        )

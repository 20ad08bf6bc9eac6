"""What follows a hidden fully connected layer, up to the logits."""

from collections.abc import Sequence

import torch
from torch import nn

from rconv.model.heads import Hidden
from rconv.model.operations import Operation
from rconv.model.weights import copy_of

ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.GELU, nn.SiLU)


def hidden_after(steps: Sequence[Operation], first: int) -> Hidden | None:
    """What follows the first Linear, where that is a hidden layer with ReLU or LeakyReLU.

    Parameters
    ----------
    steps : sequence of Operation
        Of the whole model.
    first : int
        Its first Linear.

    Returns
    -------
    Hidden or None
        None where the layers above are no sequence of Linear layers and activations.
    """
    above = [step.what for step in steps[first + 1 :]]
    chain = all(step.inputs == (i,) for i, step in enumerate(steps[first + 1 :], first))
    while above and type(above[-1]) is nn.LogSoftmax:
        above.pop()
    if not chain or len(above) < 2 or type(above[0]) not in (nn.ReLU, nn.LeakyReLU):
        return None
    if not all(type(own) is nn.Linear or type(own) in ELEMENTWISE for own in above):
        return None
    if type(above[1]) is not nn.Linear or above[1].bias is None or type(above[-1]) is not nn.Linear:
        return None
    rest = tuple(_in_float64(module) for module in above[2:])
    second, slope = above[1], getattr(above[0], "negative_slope", 0.0)
    name = steps[first + 2].name
    return Hidden(slope, name, copy_of(second.weight), copy_of(second.bias), rest)


def _in_float64(module: nn.Module) -> nn.Module:
    if type(module) is not nn.Linear:
        return module
    with torch.device("meta"):
        copied = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    copied.weight = nn.Parameter(copy_of(module.weight), requires_grad=False)
    if module.bias is not None:
        copied.bias = nn.Parameter(copy_of(module.bias), requires_grad=False)
    return copied

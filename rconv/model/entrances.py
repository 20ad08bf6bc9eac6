"""Convolutions that a model may be entered by from their own gradients, from the top down.

Nothing above such a convolution is read. It is run, to see which derivatives by the convolution's
output it can give at all.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from rconv.model.agreement import refuse_other_values
from rconv.model.batchnorm import without_statistics
from rconv.model.ends import Entry
from rconv.model.entry import network_below
from rconv.model.nodes import SUM, Network, UnsupportedModelError
from rconv.model.operations import Operation, leading_to, logits_of
from rconv.model.reach import reach
from rconv.model.read import check_input_shape, steps_of


def entrances(
    model: nn.Module, input_shape: Sequence[int], reason: str
) -> tuple[list[Network], list[str]]:
    """Networks that end at a convolution, or at a sum that its output is a term of.

    Parameters
    ----------
    model : Module
        Convolutions, then anything that passes derivatives.
    input_shape : sequence of int
        (C, H, W) of one image.
    reason : str
        Why the model is not read up to its first Linear.

    Returns
    -------
    list of Network
        The topmost convolution first.
    list of str
        Why other convolutions cannot be entered.

    Raises
    ------
    UnsupportedModelError
        If the model cannot be read as steps at all.
    """
    shape = check_input_shape(input_shape)
    steps = steps_of(model, shape)
    own = copy.deepcopy(without_statistics(model)).double()
    logits = _logits(own, steps, shape)
    found: list[Network] = []
    refusals: list[str] = []
    for i in sorted(leading_to(steps, len(steps) - 1), reverse=True):
        if type(steps[i].what) is not nn.Conv2d:
            continue
        entry, reasons = Entry(steps[i].name, None, logits, reason), []
        for end in _ends(steps, i):
            try:
                network = network_below(steps, shape, entry, end)
                refuse_other_values(own, network)
            except UnsupportedModelError as error:
                reasons.append(str(error))
                continue
            reached = replace(entry, reach=reach(own, entry.name, shape))
            found.append(replace(network, head=reached))
            break
        else:
            refusals.append(reasons[0])
    return found, refusals


def _logits(model: nn.Module, steps: list[Operation], shape: tuple[int, int, int]) -> str | None:
    """Name of the Linear that the model ends in, if its bias's gradient is that of the logits."""
    name = logits_of(steps)
    with torch.no_grad():
        result = model(next(model.parameters()).new_zeros(1, *shape))
    if name is None or model.get_submodule(name).bias is None or result.dim() != 2:
        return None
    return name


def _ends(steps: list[Operation], convolution: int) -> list[int]:
    """Steps whose derivative is that of the convolution's output, but for a BatchNorm's scale.

    First itself, or the BatchNorm in evaluation that alone takes it; then sums of it.
    """
    last, ends = convolution, [convolution]
    while True:
        takers = [i for i, own in enumerate(steps) if last in own.inputs]
        if len(takers) != 1:
            return ends
        (last,) = takers
        what = steps[last].what
        if what == SUM:
            ends.append(last)
        elif type(what) is nn.BatchNorm2d and not what.training and len(ends) == 1:
            ends = [last]
        else:
            return ends

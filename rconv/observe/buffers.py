"""What the buffers that a client returns reveal of its batch.

BatchNorm in training mode keeps running statistics, and most frameworks return them with the
weights: new = (1 - momentum) · old + momentum · batch, so that those of the batch follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rconv.model.blocks import STATISTICS


@dataclass(frozen=True)
class Running:
    """A running statistic before the client's step.

    Parameters
    ----------
    value : Tensor
        Axis (channel C), float64.
    momentum : float
        Share of the batch in the new value.
    """

    value: Tensor
    momentum: float


def running_statistics(model: nn.Module) -> dict[str, Running]:
    """The running statistics that a step in training mode changes, by name.

    Parameters
    ----------
    model : Module
        As the client received it.
    """
    found = {}
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d and module.training and module.running_mean is not None:
            momentum = module.momentum
            if momentum is None:  # the mean over all batches
                momentum = 1 / (int(module.num_batches_tracked) + 1)
            for kind in STATISTICS:
                value = getattr(module, kind).detach().to(torch.float64, copy=True)
                found[f"{name}.{kind}" if name else kind] = Running(value, momentum)
    return found


def batch_statistics(
    running: Mapping[str, Running], buffers: Mapping[str, Tensor] | None, count: int
) -> dict[str, Tensor]:
    """Mean and unbiased variance of the clients' batches in front of each BatchNorm.

    Parameters
    ----------
    running : mapping of str to Running
        Before the step.
    buffers : mapping of str to Tensor, or None
        Name → buffer after the step, (C,) or (N, C). Other entries of a `state_dict` may be among
        them. None for nothing.
    count : int
        N.

    Returns
    -------
    dict of str to Tensor
        Name → (N, C), float64.

    Raises
    ------
    ValueError
        If the model has no BatchNorm in training mode, a buffer is missing, has another shape or
        is not finite.
    """
    if buffers is None:
        return {}
    if not running:
        raise ValueError("the model has no BatchNorm2d in training mode whose buffers would help")
    found = {}
    for name, own in running.items():
        if name not in buffers:
            raise ValueError(f"the buffers have no {name}: give all of the client's state_dict")
        new = buffers[name].detach().to(own.value)
        if new.shape not in (own.value.shape, (count, *own.value.shape)):
            raise ValueError(f"the buffer {name} has the shape {tuple(new.shape)}")
        if not new.isfinite().all():
            raise ValueError(f"the buffer {name} has NaN or infinite entries")
        batch = (new - (1 - own.momentum) * own.value) / own.momentum
        found[name] = batch.expand(count, -1)
    return found

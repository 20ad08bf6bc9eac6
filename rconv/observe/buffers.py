"""What the buffers that a client returns reveal of its batch.

BatchNorm in training mode keeps running statistics, and most frameworks return them with the
weights: new = (1 - momentum) · old + momentum · batch, so that those of the batch follow.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rconv.model.blocks import STATISTICS


@dataclass(frozen=True)
class Running:
    """A running statistic before the client's step: axis (channel C), float64.

    `momentum` is the share of the batch in the new value, 0 in evaluation mode; so many `batches`
    are counted so far.
    """

    value: Tensor
    momentum: float
    batches: int


def running_statistics(model: nn.Module) -> dict[str, Running]:
    """The running statistics of a model's BatchNorms, by name, as the client received it."""
    found = {}
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d and module.running_mean is not None:
            batches, momentum = int(module.num_batches_tracked), module.momentum
            if momentum is None:  # the mean over all batches
                momentum = 1 / (batches + 1)
            for kind in STATISTICS:
                value = getattr(module, kind).detach().to(torch.float64, copy=True)
                statistic = Running(value, momentum * module.training, batches)
                found[f"{name}.{kind}".lstrip(".")] = statistic
    return found


def batch_statistics(
    running: Mapping[str, Running], buffers: Mapping[str, Tensor] | None, count: int
) -> dict[str, Tensor]:
    """Mean and unbiased variance of the batches of N clients in front of each BatchNorm.

    `running` is before the step; `buffers` are those after it, (C,) or (N, C), among which other
    entries of a `state_dict` may be; None for nothing. Returns name → (N, C), float64, of each
    BatchNorm in training mode. Raises ValueError if a buffer is missing, has another shape or is
    not finite; if buffers say that the client's BatchNorm was in the other mode, or saw more than
    one batch.
    """
    found = {}
    for name, statistic in running.items() if buffers is not None else ():
        if name not in buffers:
            if not statistic.momentum:
                continue
            raise ValueError(f"the buffers have no {name}: give all of the client's state_dict")
        new = buffers[name].detach()
        if new.shape not in (statistic.value.shape, (count, *statistic.value.shape)):
            raise ValueError(f"the buffer {name} has the shape {tuple(new.shape)}")
        if not new.isfinite().all():
            raise ValueError(f"the buffer {name} has NaN or infinite entries")
        _check_mode(name, statistic, new, buffers)
        if statistic.momentum:
            old = statistic.value.to(new.device)
            batch = (new.double() - (1 - statistic.momentum) * old) / statistic.momentum
            found[name] = batch.expand(count, -1)
    return found


def _check_mode(name: str, statistic: Running, new: Tensor, buffers: Mapping[str, Tensor]) -> None:
    """Refuse buffers that the model, in its mode, would not have left after one step."""
    old = statistic.value.to(new).expand_as(new)
    if statistic.momentum == 0 and not torch.equal(new, old):
        raise ValueError(
            f"the step changed {name}: the client's BatchNorm was in training mode; put the "
            "model into training mode as well (model.train(), or --mode training)"
        )
    counter = f"{name.rpartition('.')[0]}.num_batches_tracked".lstrip(".")
    seen = torch.as_tensor(buffers.get(counter, statistic.batches + 1)) - statistic.batches
    if statistic.momentum and (seen != 1).any():
        raise ValueError(
            f"{counter} counts {int(seen.flatten()[0])} batches since the step began; the attack "
            "needs the buffers after exactly one"
        )


def buffers_after(model: nn.Module, images: Tensor, together: bool) -> dict[str, Tensor]:
    """The buffers that clients return after a step on images (N, C, H, W).

    With `together` the images are one batch of one client. Returns name → buffer, with a leading
    axis of clients.
    """
    parts = []
    for batch in [images] if together else images.split(1):
        client = copy.deepcopy(model)
        with torch.no_grad():
            client(batch.to(next(client.parameters())))
        parts.append(dict(client.named_buffers()))
    names = parts[0]
    return {name: torch.stack([part[name] for part in parts]) for name in names}

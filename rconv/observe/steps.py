"""Weights before and after a step, checked: which entries moved, by how much, how surely."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rconv.observe.check import DTYPES
from rconv.observe.observation import ordinary

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of BatchNorm, the one layer of PyTorch whose buffers training changes."""

SURELY = 100.0
"""An entry has surely moved where its step is as many times its rounding."""

ALIKE = 1e-2
"""Steps of one size differ by less: Adam's decoupled weight decay turns them by some 1e-3, while
of the gradients of a network no more than a few per cent lie so near to their median."""

ENOUGH = 16
"""Fewer entries than that may have one size by chance."""


def checked_weights(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters among two sets of weights that belong together, detached.

    The weights after the step have the same dtypes, and the same shapes or a leading axis N of
    clients. Raises ValueError at names, shapes or dtypes that differ, unequal N, and entries that
    are NaN or infinite.
    """
    for name in [*before, *after]:
        if name not in before or name not in after:
            where = "before" if name in before else "after"
            raise ValueError(f"{name} is only among the weights {where}: are both of one model?")
    counts, own, sent = {}, {}, {}
    for name in before:
        pair = before[name], after[name]
        _check_pair(name, *pair)
        if name.rpartition(".")[2] in STATISTICS or not pair[0].is_floating_point():
            continue
        own[name], sent[name] = (ordinary(w.detach()) for w in pair)
        counts[name] = len(pair[1]) if pair[1].shape != pair[0].shape else None
    if not own:
        raise ValueError("there are no weights among these")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the weights after are of different numbers of clients: {counts}")
    return own, sent


def check_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Refuse steps that reveal nothing, or nothing but signs.

    Takes what `checked_weights` returns. Raises ValueError if no entry changed, or if more than
    half of those that surely moved did so by one size.
    """
    sizes = []
    for name, sent in after.items():
        step = moved(before[name].to(sent.device, torch.float64), sent).abs()
        sizes.append(step[step > SURELY * spread_of(sent)].cpu())
    if all(torch.equal(before[n].expand_as(w).to(w.device), w) for n, w in after.items()):
        raise ValueError(
            "the weights before and after are the same: no step was made, or one below their "
            "rounding"
        )
    surely = torch.cat(sizes)
    if len(surely) < ENOUGH:
        return
    alike = (surely / surely.median() - 1).abs() < ALIKE
    if alike.sum() > len(surely) / 2:
        raise ValueError(
            f"{int(alike.sum())} of {len(surely)} entries moved by {float(surely.median()):.3g}, "
            "up or down: this was no step of SGD. The first step of Adam, RMSprop or Adagrad keeps "
            "little more than the sign of each gradient. What remains are the signs of "
            "before - after, and the equations need the sizes"
        )


def moved(before: Tensor, after: Tensor) -> Tensor:
    """What the step took away, float64: before - after, exact for 32-bit numbers."""
    return before - after.double()


def spread_of(weight: Tensor) -> Tensor:
    """Standard deviation of each weight's rounding, uniform within `half_spacing`; float64."""
    return half_spacing(weight) / math.sqrt(3)


def half_spacing(x: Tensor) -> Tensor:
    """Half the distance from each number to the next larger in size, float64."""
    info = torch.finfo(x.dtype)
    size = x.double().abs().clamp(min=info.smallest_normal)
    mantissa, _ = torch.frexp(size)  # in [1/2, 1); size / (2 · mantissa) is a power of two, exactly
    return info.eps / 2 * (size / (2 * mantissa))


def _check_pair(name: str, before: Tensor, after: Tensor) -> None:
    for tensor in (before, after):
        if not torch.is_tensor(tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError(f"{name} must be a dense tensor with values")
    if before.dtype != after.dtype:
        raise ValueError(
            f"{name} is {before.dtype} before and {after.dtype} after: the difference needs both "
            "as the client had them"
        )
    if before.is_floating_point() and before.dtype not in DTYPES:
        raise ValueError(f"{name} is {before.dtype}: weights of this kind carry scales beside them")
    alone = after.shape == before.shape
    if not alone and not (after.shape[1:] == before.shape and len(after) > 0):
        shapes = f"{tuple(before.shape)} before and {tuple(after.shape)} after"
        raise ValueError(f"{name} has the shape {shapes}: are both of one model?")
    for when, tensor in (("before", before), ("after", after)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has NaN or infinite entries {when} the step")

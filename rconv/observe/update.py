r"""Gradients from new weights: what one step of SGD gives away.

The client computes :math:`w' = w - \eta\, d` and sends :math:`w'`. Whoever has :math:`w` as well
divides the difference by the learning rate. The difference of two 32-bit numbers is exact in 64
bits; what is lost is lost when the client rounds :math:`w'`: up to half the spacing of its
numbers, which is :math:`2^{-24} |w'|` or less, and :math:`1/\eta` times as much in the gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rconv.model.blocks import STATISTICS
from rconv.observe.check import DTYPES
from rconv.observe.noise import Noise
from rconv.observe.observation import ordinary

Weights = Mapping[str, Tensor]
"""Name → weight: a state dict, or named parameters."""

BUFFERS = (*STATISTICS, "num_batches_tracked")
"""Of BatchNorm, the one layer of PyTorch whose buffers training changes."""

SURELY = 100.0
"""An entry has surely moved where its step is as many times its rounding."""

ALIKE = 1e-2
"""Steps of one size differ by less: Adam's decoupled weight decay turns them by some 1e-3, while
of the gradients of a network no more than a few per cent lie so near to their median."""

ENOUGH = 16
"""Fewer entries than that may have one size by chance."""


def gradients_from_update(
    before: Weights,
    after: Weights,
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[dict[str, Tensor], Noise]:
    r"""Gradients behind the first step of `torch.optim.SGD`, and the noise of every entry.

    The step is :math:`w' = w - \eta (1 + \mu) (g + \lambda w)`, with :math:`\mu` the momentum where
    `nesterov` is set and 0 where it is not: the first step of plain momentum is that of no
    momentum, whatever its dampening. One step is undone, on one image or on several; the attack is
    given both results, and for several images ``batch``: ``Attack(model, shape)(gradients,
    noise=noise, buffers=after)``.

    Parameters
    ----------
    before, after : mapping of str to Tensor
        Name → weight that the client started from (`state_dict()` or `named_parameters()`), and
        that it sent, of the same dtype and shape, or `(N, *shape)` for N clients.
    learning_rate, weight_decay : float
        η, positive, which the protocol prescribes; λ, part of the gradient as SGD has it.
    momentum, nesterov, maximize : float, bool, bool
        As `torch.optim.SGD` takes them.

    Returns
    -------
    gradients : dict of str to Tensor
        Name → gradient, float64, shaped as `after`. Buffers are left out: pass `after` to the
        attack as ``buffers``. With BatchNorm in training mode it computes the statistics of the
        batch from them, and it checks that the client's mode was that of the model.
    noise : Noise
        Of every entry: the rounding of its new weight, uniform within half the spacing of the
        numbers there, over the length of the step; the roundings on the way to it; and the rounding
        of a gradient computed in that dtype.

    Raises
    ------
    ValueError
        If names, shapes or dtypes differ, entries are NaN or infinite, or a setting is out of
        range. If nothing has changed. If most entries moved by one size, as Adam moves them: that
        reveals signs, no gradients.
    """
    length = _length(learning_rate, weight_decay, momentum, nesterov)
    before, after = checked_weights(before, after)
    check_moved(before, after)
    gradients, deviations = {}, {}
    for name, sent in after.items():
        weight = before[name].to(sent.device, torch.float64)
        direction = (weight - sent.double()) / length  # exact for 32-bit numbers
        gradient = direction - weight_decay * weight
        gradients[name] = -gradient if maximize else gradient
        # Decay, momentum and rate each round once on the way, by up to eps / 2, uniformly.
        on_the_way = torch.finfo(sent.dtype).eps / 2 * direction.abs()
        deviations[name] = torch.hypot(half_spacing(sent) / math.sqrt(3) / length, on_the_way)
    coarsest = max((sent.dtype for sent in after.values()), key=lambda t: torch.finfo(t).eps)
    return gradients, replace(Noise.of(coarsest), std=deviations)


def _length(rate: float, decay: float, momentum: float, nesterov: bool) -> float:
    """What the direction of the step was multiplied by."""
    if not 0 < rate < math.inf:
        raise ValueError(f"the learning rate is {rate}: it must be positive and finite")
    for name, value in (("weight decay", decay), ("momentum", momentum)):
        if not 0 <= value < math.inf:
            raise ValueError(f"the {name} is {value}: it must be a finite number, 0 or more")
    if nesterov and not momentum:
        raise ValueError("Nesterov's step needs its momentum")
    return rate * (1 + momentum if nesterov else 1)


def checked_weights(before: Weights, after: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters among two sets of weights that belong together, detached.

    The weights after the step have the same dtypes, and the same shapes or a leading axis N of
    clients. Raises ValueError at names, shapes or dtypes that differ, unequal N, and entries that
    are NaN or infinite.
    """
    for name in [*before, *after]:
        if name not in before or name not in after:
            where = "before" if name in before else "after"
            raise ValueError(f"{name} is only among the weights {where}: are both of one model?")
    counts, kept, sent = {}, {}, {}
    for name in before:
        pair = before[name], after[name]
        _check_pair(name, *pair)
        if name.rpartition(".")[2] in BUFFERS or not pair[0].is_floating_point():
            continue
        kept[name], sent[name] = (ordinary(w.detach()) for w in pair)
        counts[name] = len(pair[1]) if pair[1].shape != pair[0].shape else None
    if not kept:
        raise ValueError("there are no weights among these")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the weights after are of different numbers of clients: {counts}")
    return kept, sent


def check_moved(before: Weights, after: Weights) -> None:
    """Refuse the steps of `checked_weights` that reveal nothing, or nothing but signs.

    Raises ValueError if no entry changed, or if more than half of those that surely moved did so by
    one size.
    """
    sizes = []
    for name, sent in after.items():
        step = (before[name].to(sent.device, torch.float64) - sent.double()).abs()
        sizes.append(step[step > SURELY * half_spacing(sent) / math.sqrt(3)].cpu())
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

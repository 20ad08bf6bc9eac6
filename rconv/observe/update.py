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

from rconv.observe.noise import Noise
from rconv.observe.steps import check_moved, checked_weights, moved, spread_of

Weights = Mapping[str, Tensor]
"""Name → weight: a state dict, or named parameters."""


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
        own = before[name].to(sent.device, torch.float64)
        direction = moved(own, sent) / length
        gradient = direction - weight_decay * own
        gradients[name] = -gradient if maximize else gradient
        # Decay, momentum and rate each round once on the way, by up to eps / 2, uniformly.
        on_the_way = torch.finfo(sent.dtype).eps / 2 * direction.abs()
        deviations[name] = torch.hypot(spread_of(sent) / length, on_the_way)
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

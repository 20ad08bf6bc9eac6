"""The head of a batch: how many samples there are, and what each of them has there.

What the noise does to features and cotangents is measured: gradients with random errors of its
size are taken apart again.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.attack.disaggregation import HeadEquations, Samples, disaggregate
from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.head import HeadInput
from rconv.attack.start import Start, head_report
from rconv.attack.verdict import ACCUMULATED, ARITHMETIC
from rconv.linalg.solution import largest_of_noise, root_mean_square
from rconv.model.ends import Head
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

REPEATS = 4
"""Random errors whose effect is measured: the root mean square of four is within a factor of two
nineteen times in twenty."""


class InseparableError(ValueError):
    """The gradient of a batch that is not taken apart, with the reason."""


@dataclass(frozen=True)
class BatchHead:
    """The samples of one batch at the input of the head.

    Parameters
    ----------
    samples : Samples
        Features, logit gradients and labels.
    factor : int
        What the gradient of each parameter is multiplied by to be the sum over the samples: B
        for the mean, 1 for a sum.
    estimate : Estimate
        The input of the head, as a map.
    cotangent : Cotangent
        The derivative of each sample's loss by it.
    """

    samples: Samples
    factor: int
    estimate: Estimate
    cotangent: Cotangent

    def divided(self, unit: Tensor) -> "BatchHead":
        """The same with its cotangents divided."""
        samples = replace(self.samples, cotangent=self.samples.cotangent / unit)
        back = replace(self.cotangent, value=self.cotangent.value / unit)
        return replace(self, samples=samples, cotangent=back)

    def start(self, name: str) -> Start:
        """What the recursion starts from, as a head of this name and of B images says it."""
        value, count = self.estimate.value.flatten(1), len(self.samples.labels)
        head = HeadInput(
            value,
            self.samples.cotangent,
            torch.arange(count, device=value.device),
            torch.full_like(value[:, 0], self.samples.residual),
            torch.ones(count, dtype=torch.bool, device=value.device),
        )
        report = head_report(name, head)
        return Start(self.estimate, self.cotangent, report, name, self.samples.cotangent)


def batch_head(
    head: Head,
    bias: Tensor,
    gradients: Gradients,
    noise: Noise,
    batch: int,
    shape: tuple[int, int, int],
) -> BatchHead:
    """Take the averaged gradient of a head apart.

    Parameters
    ----------
    head : Head
        The network's only Linear.
    bias : Tensor
        c, (K,), float64.
    gradients : dict of str to Tensor
        Name → (1, *parameter shape), float64.
    noise : Noise
        What is known of their errors.
    batch : int
        B.
    shape : tuple of int
        Of the map that the head takes.

    Returns
    -------
    BatchHead

    Raises
    ------
    InseparableError
        Where the rank is not B, or no samples explain the gradient.
    """
    gradient, errors = head_gradient(head, gradients, noise)
    rank = head_rank(gradient, errors)
    if rank != batch:
        why = (
            "two of them are alike, or their differences drown in the noise"
            if rank < batch
            else "there are more, or there is noise that was not told"
        )
        raise InseparableError(
            f"the head's gradient has rank {rank}, that of {batch} samples has {batch}: {why}"
        )
    matrix, least = torch.cat([head.weight, bias[:, None]], dim=1), None
    level = float(errors.norm() / gradient.norm())
    accepted = ACCUMULATED * level + ARITHMETIC
    for factor in (batch, 1):
        samples = disaggregate(matrix, factor * gradient, batch, accepted)
        if samples is not None and samples.residual <= accepted:
            return _measured(matrix, factor * gradient, factor * errors, samples, factor, shape)
        if samples is not None and (least is None or samples.residual < least):
            least = samples.residual
    raise InseparableError(
        f"no {batch} samples of cross-entropy, averaged or summed, were found to explain the "
        f"head's gradient ({'no labels fit' if least is None else f'residual {least:.0e}'}): "
        "labels that repeat, a network that is sure of its classes, another loss, or scaled or "
        "noisy gradients"
    )


def head_gradient(head: Head, gradients: Gradients, noise: Noise) -> tuple[Tensor, Tensor]:
    """[∂ℓ/∂V, ∂ℓ/∂c] and the standard deviation of every entry's error, (K, n + 1) each."""
    parts, errors = [], []
    for name in (f"{head.name}.weight", f"{head.name}.bias"):
        own = gradients[name]
        spread = noise.row_errors(name, own, own.new_ones(1))
        parts.append(own[0].reshape(len(own[0]), -1))
        errors.append(spread[0].reshape(parts[-1].shape))
    return torch.cat(parts, dim=1), torch.cat(errors, dim=1)


def head_rank(gradient: Tensor, errors: Tensor) -> int:
    """Number of samples: singular values above those of the errors.

    Parameters
    ----------
    gradient, errors : Tensor
        (K, n + 1), as `head_gradient` returns them.

    Returns
    -------
    int
    """
    values = torch.linalg.svdvals(gradient)
    floor = ACCUMULATED * float(largest_of_noise(errors, *gradient.shape))
    return int((values > floor + ARITHMETIC * values[0]).sum())


def _measured(
    matrix: Tensor,
    gradient: Tensor,
    errors: Tensor,
    samples: Samples,
    factor: int,
    shape: tuple[int, int, int],
) -> BatchHead:
    """The samples as maps, with what random errors of the gradient make of them."""
    weight, batch = matrix[:, :-1], len(samples.labels)
    generator = torch.Generator().manual_seed(0)
    value, back = samples.features[:, :-1], samples.cotangent @ weight
    shifts, turns = [], []
    for _ in range(REPEATS):
        e = torch.randn(errors.shape, generator=generator, dtype=errors.dtype).to(errors)
        equations = HeadEquations.of(matrix, gradient + e * errors, batch)
        start = equations.start(samples.cotangent)
        features, z = equations.solve(start, samples.labels, samples.residual)
        shifts.append(features[:, :-1] - value)
        turns.append(z @ weight - back)
    channels = torch.stack(shifts).reshape(REPEATS, batch, shape[0], -1)
    error = channels.square().mean(dim=(0, 3)).sqrt()
    turn = torch.stack(turns).square().mean(dim=(0, 2)).sqrt()
    size = root_mean_square(back)
    relative = (turn / torch.where(size > 0, size, 1.0)).clamp(max=1.0)
    maps = value.reshape(batch, *shape), back.reshape(batch, *shape)
    return BatchHead(samples, factor, Estimate.whole(maps[0], error), Cotangent(maps[1], relative))

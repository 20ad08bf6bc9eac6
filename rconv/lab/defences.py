"""What a client can do to its gradients before it sends them, and the ε that this buys.

Gradients are mappings of a parameter's name to `(N, *parameter shape)`, N clients. Every defence
treats each client by itself and returns gradients of the same shapes, in a new mapping; random ones
draw from a generator on the CPU, so that a seed repeats them.

A release is (ε, δ)-differentially private if no outcome set is more than e^ε times as likely, up
to δ, on one data set than on its neighbour. What a neighbour is belongs to the number: each
function says it. That of a training is from Google's accountant `dp_accounting`, which comes with
the book's extra.
"""

import math

import torch
from scipy.optimize import brentq
from scipy.special import log_ndtr
from torch import Tensor

from rconv.extras import extra
from rconv.linalg.solution import aligned, root_mean_square
from rconv.observe.observation import Gradients

DELTA = 1e-5
"""The δ of all tables: below one over the number of training images, as is usual."""


def add_noise(
    gradients: Gradients, strength: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Gaussian noise on every entry, g + strength · rms(g) · ε, with the rms of its parameter."""
    return {
        name: g + strength * aligned(root_mean_square(g), g) * _normal(g, generator)
        for name, g in gradients.items()
    }


def clip(gradients: Gradients, bound: float) -> dict[str, Tensor]:
    """Scale each client's gradients to a norm of at most `bound`, C: g · min(1, C / ‖g‖)."""
    size = norms(gradients)
    factor = bound / size.clamp(min=bound)
    return {name: g * aligned(factor, g) for name, g in gradients.items()}


def clip_and_noise(
    gradients: Gradients,
    multiplier: float,
    bound: float,
    generator: torch.Generator,
    *,
    summed: bool = False,
) -> dict[str, Tensor]:
    """Clip, then add Gaussian noise of the same size to every entry: the Gaussian mechanism.

    clip(g) + σ · C · ε, with the noise multiplier σ and the bound C; if `summed`, the clipped
    gradients are added before the noise, as in a step of DP-SGD, and N is 1 in the result. The
    privacy of one release of one client is `epsilon_of_release`.
    """
    clipped = clip(gradients, bound)
    if summed:
        clipped = {name: g.sum(dim=0, keepdim=True) for name, g in clipped.items()}
    std = multiplier * bound
    return {name: g + std * _normal(g, generator) for name, g in clipped.items()}


def prune(gradients: Gradients, share: float) -> dict[str, Tensor]:
    """Set the smallest entries of every parameter's gradient to zero, the others stay as they are.

    `share` is that of the entries of each parameter, in [0, 1]; at least one of each stays.
    """
    pruned = {}
    for name, g in gradients.items():
        size = g.abs().flatten(1)
        count = min(int(share * size.shape[1]), size.shape[1] - 1)
        smallest = size.argsort(dim=1)[:, :count]
        pruned[name] = g.flatten(1).scatter(1, smallest, 0.0).reshape(g.shape)
    return pruned


def round_to(gradients: Gradients, dtype: torch.dtype) -> dict[str, Tensor]:
    """Round every entry to a shorter floating-point number, and send it as that."""
    return {name: g.to(dtype) for name, g in gradients.items()}


def norms(gradients: Gradients) -> Tensor:
    """Euclidean norm of each client's gradients, all parameters together: (N,)."""
    return torch.cat([g.flatten(1) for g in gradients.values()], dim=1).norm(dim=1)


def epsilon_of_release(multiplier: float, delta: float) -> float:
    """ε of one clipped and noisy gradient that one client sends of one image.

    Neighbours differ in this image: any other image could stand in its place (replace-one). Their
    clipped gradients are then up to twice the bound apart, whatever the images. No sampling, one
    step; exact (Balle and Wang's analytic Gaussian mechanism). σ is the standard deviation of the
    noise over the clipping bound.
    """
    _check_mechanism(multiplier, delta)
    mu = 2 / multiplier

    def excess(epsilon: float) -> float:
        """Log of the δ that belongs to an ε, over the given one."""
        first, second = log_ndtr(mu / 2 - epsilon / mu), log_ndtr(-mu / 2 - epsilon / mu)
        rest = math.log1p(-math.exp(min(epsilon + second - first, -1e-16)))
        return first + rest - math.log(delta)

    most = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # by the tail of the privacy loss
    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, most, rtol=1e-12))


def epsilon_of_training(multiplier: float, delta: float, rate: float, steps: int) -> float:
    """ε of a model trained by noisy steps on sums of clipped gradients (DP-SGD).

    Neighbours differ by one image more or less (add-or-remove). In every step each image takes part
    with probability `rate`, independently of the others; the noise is added to the sum, by someone
    whom the clients trust, and all steps are seen. From the privacy loss distribution, rounded so
    that ε is an upper bound. The multiplier σ is the standard deviation of the noise in the sum
    over the clipping bound; below about 0.3 the distribution is too wide to be computed in seconds.
    """
    with extra():
        from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant

    _check_mechanism(multiplier, delta)
    if not 0 < rate <= 1 or steps < 1:
        raise ValueError(f"rate {rate} and {steps} steps: give a share above 0, and 1 step or more")
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(multiplier)), steps)
    return float(accountant.get_epsilon(delta))


def _check_mechanism(multiplier: float, delta: float) -> None:
    if not multiplier > 0 or not 0 < delta < 1:
        raise ValueError(
            f"noise multiplier {multiplier} and delta {delta}: without noise there is no epsilon, "
            "and delta is a probability between 0 and 1"
        )


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like)

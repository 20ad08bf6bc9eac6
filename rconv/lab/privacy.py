"""The ε that clipping and Gaussian noise buy: of one release, and of a training.

A release is (ε, δ)-differentially private if no outcome set is more than e^ε times as likely, up
to δ, on one data set than on its neighbour. What a neighbour is belongs to the number: each
function says it. That of a training is from Google's accountant `dp_accounting`, which comes with
the book's extra.
"""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

DELTA = 1e-5
"""The δ of all tables: below one over the number of training images, as is usual."""


def epsilon_of_release(multiplier: float, delta: float) -> float:
    """ε of one clipped and noisy gradient that one client sends of one image.

    Neighbours differ in this image: any other image could stand in its place (replace-one). Their
    clipped gradients are then up to twice the bound apart, whatever the images. No sampling, one
    step; exact (Balle and Wang's analytic Gaussian mechanism).

    Parameters
    ----------
    multiplier : float
        σ, standard deviation of the noise over the clipping bound, positive.
    delta : float
        δ, in (0, 1).

    Returns
    -------
    float
        ε.

    Raises
    ------
    ValueError
        A multiplier or δ out of range.
    """
    _check(multiplier, delta)
    mu = 2 / multiplier

    def excess(epsilon: float) -> float:
        """Log of the δ that belongs to an ε, over the given one."""
        first, second = log_ndtr(mu / 2 - epsilon / mu), log_ndtr(-mu / 2 - epsilon / mu)
        return (
            first + math.log1p(-math.exp(min(epsilon + second - first, -1e-16))) - math.log(delta)
        )

    most = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # by the tail of the privacy loss
    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, most, rtol=1e-12))


def epsilon_of_training(multiplier: float, delta: float, rate: float, steps: int) -> float:
    """ε of a model trained by noisy steps on sums of clipped gradients (DP-SGD).

    Neighbours differ by one image more or less (add-or-remove). In every step each image takes
    part with probability `rate`, independently of the others; the noise is added to the sum, by
    someone whom the clients trust, and all steps are seen. From the privacy loss distribution,
    rounded so that ε is an upper bound.

    Parameters
    ----------
    multiplier : float
        σ, standard deviation of the noise in the sum over the clipping bound, positive. Below
        about 0.3 the distribution is too wide to be computed in seconds.
    delta : float
        δ, in (0, 1).
    rate : float
        Sampling rate, in (0, 1].
    steps : int
        Number of steps, at least 1.

    Returns
    -------
    float
        ε.

    Raises
    ------
    ValueError
        A number out of range.
    """
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    _check(multiplier, delta)
    if not 0 < rate <= 1 or steps < 1:
        raise ValueError(f"rate {rate} and {steps} steps: give a share above 0, and 1 step or more")
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(multiplier)), steps)
    return float(accountant.get_epsilon(delta))


def _check(multiplier: float, delta: float) -> None:
    if not multiplier > 0 or not 0 < delta < 1:
        raise ValueError(
            f"noise multiplier {multiplier} and delta {delta}: without noise there is no epsilon, "
            "and delta is a probability between 0 and 1"
        )

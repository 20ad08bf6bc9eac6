"""Whether the noise that is known leaves residuals like these: the attack on a simulated client.

An error of the image that the noise leads to shows in the certificate of every layer, by a factor
that depends on the network. A client with the reconstructed image and this noise is simulated and
attacked: residuals far above those of the simulation have another cause, such as several steps.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from rconv.attack.certificate import recomputed
from rconv.attack.report import Reconstruction
from rconv.attack.systematic import second_order
from rconv.attack.verdict import ACCUMULATED, STATED
from rconv.model.ends import Head
from rconv.observe.noise import ARITHMETIC, Noise
from rconv.observe.observation import Gradients


def needs_simulation(result: Reconstruction, head: object) -> torch.Tensor:
    """Which images would be called unique though a layer exceeds what its noise alone allows.

    Parameters
    ----------
    result : Reconstruction
        Of N images.
    head : Head or Entry
        Of the network; a simulation needs a head with a bias, whose gradient is the cotangent.

    Returns
    -------
    Tensor
        (N,), bool.
    """
    able = isinstance(head, Head) and head.has_bias
    return result.unique & (result.revealed_noise == 0) & (result.excess > 1).any(dim=1) & able


def compared_with_simulation(
    result: Reconstruction,
    head: Head,
    model: nn.Module,
    gradients: Gradients,
    noise: Noise,
    attempt: Callable[..., Reconstruction],
) -> Reconstruction:
    """Images, with undeclared noise where the known noise does not explain their residuals.

    Parameters
    ----------
    result : Reconstruction
        Of N images.
    head : Head
        Of the network.
    model : Module
        The shared model, float64.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), float64.
    noise : Noise
        What is known of their errors.
    attempt : callable
        Takes gradients and noise.

    Returns
    -------
    Reconstruction
    """
    sent = recomputed(model, head.name, result.images, gradients[f"{head.name}.bias"])
    sent = {**gradients, **{name: own for name, own in sent.items() if name in gradients}}
    rounding = ACCUMULATED / STATED * max(noise.relative, ARITHMETIC)
    widened, generator = replace(noise, relative=rounding), torch.Generator().manual_seed(0)
    for name, own in sent.items():
        e = torch.randn(own.shape, generator=generator, dtype=own.dtype).to(own)
        sent[name] = own + e * widened.deviation(name, gradients[name])
    simulated = attempt(sent, noise)
    expected = (STATED * simulated.excess).clamp(min=1.0)
    beyond = (result.excess > expected).any(dim=1)
    revealed = torch.where(beyond, result.gradient_residual.clamp(max=1.0), result.revealed_noise)
    systematic = result.systematic_error.maximum(second_order(revealed))
    systematic = torch.where(beyond, systematic, result.systematic_error)
    return replace(result, revealed_noise=revealed, systematic_error=systematic)

"""Images that do not explain their gradients as well as the declared noise allows.

The discrepancy principle: equations and expected error follow the noise that the residual reveals.
And whether the known noise leaves residuals like these at all: an error of the image that the noise
leads to shows in the certificate of every layer, by a factor that depends on the network. A client
with the reconstructed image and this noise is simulated and attacked: residuals far above those of
the simulation have another cause, such as several steps.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from rconv.attack.attempt import HOPELESS, with_noise
from rconv.attack.certificate import recomputed
from rconv.attack.report import LayerReport, Reconstruction
from rconv.attack.systematic import is_scattered, second_order
from rconv.attack.verdict import ACCUMULATED, ARITHMETIC, STATED
from rconv.model.heads import Head
from rconv.observe.noise import ARITHMETIC as ROUNDING
from rconv.observe.noise import Observed

Attempt = Callable[..., Reconstruction]
"""Takes `Observed`, and with `frugal` keeps the cheapest equations."""


def second_look(first: Reconstruction, client: Observed, attempt: Attempt) -> Reconstruction:
    """Another answer to one client's gradients, where the first does not explain them.

    Perhaps the equations were the wrong ones: the cheapest are tried. Or the noise is larger than
    declared: then it is the revealed one, and equations and expected error follow. The better
    answer is returned, with what the noise makes of its expected error.
    """
    frugal = attempt(client, frugal=True)
    if not (frugal.revealed_noise > 0).any():
        return frugal
    best = min(first, frugal, key=lambda r: (int(r.gap.sum()), float(r.gradient_residual[0])))
    revealed = torch.minimum(first.revealed_noise, frugal.revealed_noise)
    error = best.growth * revealed
    # The head's residual shows the noise alone, before it turns any derivative.
    levels = [_head_noise(first.layers[0]), float(revealed[0])]
    systematic = best.systematic_error.maximum(second_order(revealed))
    for level in (own for own in levels if ARITHMETIC < own < HOPELESS):
        noisy = attempt(with_noise(client, level))
        if noisy.gradient_residual[0] < best.gradient_residual[0]:
            best, error = noisy, noisy.expected_error
        error = error.maximum(noisy.expected_error)
        if not (noisy.revealed_noise > 0).any():
            # A noise of the size that the head shows explains all layers, and is one: the head
            # would have the trace of several images.
            alone = level == levels[0] and len(first.images) == 1
            if alone and is_scattered(best, client.gradients):
                systematic = noisy.systematic_error
            revealed = revealed.clamp(max=max(level, float(best.gradient_residual[0])))
            break
    if revealed[0] >= HOPELESS:
        error = torch.ones_like(error)
    error = error.maximum(best.expected_error).maximum(revealed).clamp(max=1.0)
    return replace(best, expected_error=error, revealed_noise=revealed, systematic_error=systematic)


def _head_noise(head: LayerReport) -> float:
    """Relative noise of the head's gradient: its residual, which fitting a product lowers.

    Of K · n independent errors (K - B) (n - B) are left beside a product of K · B and B · n
    entries, for the B samples of a batch.
    """
    n, rows, batch = head.unknowns, int(head.gradient_rows[0]), len(head.rank)
    left = (rows // n - batch) * (n - batch) / rows if head.constraints[0] == "head" else 0.0
    return float(head.residual[0]) / (left**0.5 if left > 0 else 1.0)


def needs_simulation(result: Reconstruction, head: object) -> torch.Tensor:
    """(N,), bool: images that would be called unique though a layer exceeds what its noise allows.

    A simulation needs a head with a bias, whose gradient is the cotangent.
    """
    able = isinstance(head, Head) and head.has_bias
    return result.unique & (result.revealed_noise == 0) & (result.excess > 1).any(dim=1) & able


def compared_with_simulation(
    result: Reconstruction, head: Head, model: nn.Module, clients: Observed, attempt: Attempt
) -> Reconstruction:
    """Images, with undeclared noise where the known noise does not explain their residuals.

    Of N images of a network with this head, whose gradients `clients` are as they were sent.
    """
    gradients, noise = clients.gradients, clients.noise
    sent = recomputed(model, head.name, result.images, gradients[f"{head.name}.bias"])
    sent = {**gradients, **{name: own for name, own in sent.items() if name in gradients}}
    rounding = ACCUMULATED / STATED * max(noise.relative, ROUNDING)
    widened, generator = replace(noise, relative=rounding), torch.Generator().manual_seed(0)
    for name, own in sent.items():
        e = torch.randn(own.shape, generator=generator, dtype=own.dtype).to(own)
        sent[name] = own + e * widened.entry_std(name, gradients[name])
    simulated = attempt(replace(clients, gradients=sent))
    expected = (STATED * simulated.excess).clamp(min=1.0)
    beyond = (result.excess > expected).any(dim=1)
    revealed = torch.where(beyond, result.gradient_residual.clamp(max=1.0), result.revealed_noise)
    systematic = result.systematic_error.maximum(second_order(revealed))
    systematic = torch.where(beyond, systematic, result.systematic_error)
    return replace(result, revealed_noise=revealed, systematic_error=systematic)

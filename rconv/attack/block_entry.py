"""A convolution below BatchNorm in training mode, entered by its own gradients.

Span constraints give the derivative Ō by the convolution's output. Behind the norm, with
standard deviations σ, normalised outputs ô and N values of a channel, it is

    z̄ = σ / γ · Ō + (∂ℓ/∂β + ô ∂ℓ/∂γ) / N,

since Ō = γ / σ · (z̄ - mean(z̄) - ô mean(z̄ ô)), and both means are observed.
"""

import torch

from rconv.attack.estimate import Cotangent, Estimate
from rconv.linalg.solution import root_mean_square
from rconv.model.blocks import Block
from rconv.model.geometry import Stage
from rconv.observe.observation import Gradients


def cotangent_behind_norm(
    block: Block, x: Estimate, cotangent: Cotangent, gradients: Gradients
) -> Cotangent:
    """z̄ of N clients of one sample each.

    Parameters
    ----------
    block : Block
        Convolution and BatchNorm.
    x : Estimate
        The block's input.
    cotangent : Cotangent
        Ō, the derivative by the convolution's output.
    gradients : mapping of str to Tensor
        Observed ones; those of the BatchNorm among them.
    """
    name, norm = block.layers[0]
    output = Stage.evaluate(block, x.value)
    variance, mean = torch.var_mean(output, dim=(2, 3), correction=0, keepdim=True)
    std = (variance + norm.eps).sqrt()
    by_bias, by_weight = (gradients[f"{name}.{key}"][..., None, None] for key in ("bias", "weight"))
    means = (by_bias + by_weight * (output - mean) / std) / output[0, 0].numel()
    weight = norm.weight.detach()[:, None, None]
    value = std / weight * cotangent.value + means
    relative = torch.hypot(cotangent.relative_std, x.relative_std())
    size = root_mean_square(cotangent.value * std / weight) / root_mean_square(value)
    return Cotangent(value, (relative * size.clamp(min=1.0)).clamp(max=1.0))

"""BatchNorm in evaluation: an affine map of each channel, folded into the convolution below."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.model.geometry import Stage
from rconv.model.nodes import Affine, UnsupportedModelError
from rconv.model.weights import check_own_parameters
from rconv.model.wrappers import shared_copy


def affine_of(name: str, norm: nn.BatchNorm2d, channels: int) -> Affine:
    """Read one BatchNorm of C channels: y = γ (x - μ) / σ + β as a scale and a shift, in float64.

    Raises UnsupportedModelError if it normalises by the batch, or does not fit its input.
    """
    if norm.training or norm.running_mean is None:
        raise UnsupportedModelError(
            f"{name}: BatchNorm2d normalises by the batch, which the gradients do not reveal; "
            "call model.eval() on both sides first, and keep track_running_stats"
        )
    if norm.num_features != channels:
        raise UnsupportedModelError(
            f"{name}: takes {norm.num_features} channels, but its input has {channels}"
        )
    if norm.affine:
        check_own_parameters(name, norm, (channels,))
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.detach().double()
    if not (scale.isfinite() & shift.isfinite()).all():
        raise UnsupportedModelError(f"{name}: its running variance or mean is not finite")
    return Affine(scale, shift)


def without_statistics(model: nn.Module) -> nn.Module:
    """The model, or a copy if it has norms in training mode that keep running statistics.

    The norms of the copy keep none. They use the statistics of the batch and compute the same; only
    the update is left out, which would change the model, and which `torch.func` cannot do image by
    image. All parameters are shared with the model.
    """

    def keeps(module: nn.Module) -> bool:
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        return norm and module.training and module.running_mean is not None

    if not any(map(keeps, model.modules())):
        return model
    copied = shared_copy(model)
    for module in filter(keeps, copied.modules()):
        module.running_mean = module.running_var = module.num_batches_tracked = None
    return copied


def folded(stage: Stage, name: str, norm: Affine) -> Stage:
    """The convolution and the BatchNorm of this name behind it as one convolution."""
    bias = torch.zeros_like(norm.shift) if stage.bias is None else stage.bias
    weight: Tensor = stage.weight * norm.scale[:, None, None, None]
    return replace(
        stage, weight=weight, bias=bias * norm.scale + norm.shift, scale=norm.scale, norm=name
    )

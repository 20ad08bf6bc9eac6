"""A convolution and BatchNorm in training mode, with the statistics of the batch given.

The norm is then affine in its input, and so is the derivative by it,
Ō = γ / σ · (z̄ - m₁ - ô m₂), where m₁ and m₂, the means of z̄ and of z̄ ô, are observed as
gradients of β and γ. The equations of the convolution's input are linear but for one product, and
Gauss-Newton reaches their solution from afar, which it does not where the statistics are functions
of the input.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from rconv.equations.block import BlockFunction


@dataclass(frozen=True)
class NormFunction(BlockFunction):
    """r(X) as `BlockFunction` has it, where X has the given statistics.

    Parameters
    ----------
    mean, std, by_bias, by_weight : Tensor
        μ, σ, m₁ and m₂, (D, 1, 1).
    """

    mean: Tensor = field(kw_only=True)
    std: Tensor = field(kw_only=True)
    by_bias: Tensor = field(kw_only=True)
    by_weight: Tensor = field(kw_only=True)

    @property
    def _affine(self) -> tuple[str, Tensor, Tensor]:
        """Name of the norm, γ and β, (D, 1, 1)."""
        ((name, norm),) = self.block.layers
        weight, bias = (own.detach()[:, None, None] for own in (norm.weight, norm.bias))
        return name, weight, bias

    def by_convolution(self, convolved: Tensor) -> Tensor:
        """Ō, (B, D, Ho, Wo), from the output of the convolution."""
        _, weight, _ = self._affine
        normal = (convolved - self.mean) / self.std
        return weight / self.std * (self.cotangent - self.by_bias - normal * self.by_weight)

    def convolved_from(self, output: Tensor, known: Tensor) -> Tensor:
        """An output of the convolution that has the right mean and, where known, values."""
        _, weight, bias = self._affine
        value = torch.where(known, self.mean + self.std * (output - bias) / weight, 0.0)
        missing = (~known).sum(dim=(0, 2, 3), keepdim=True)
        rest = self.mean * known[:, 0].numel() - value.sum(dim=(0, 2, 3), keepdim=True)
        return torch.where(known, value, rest / missing.clamp(min=1))

    def parts(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """See `BlockFunction.parts`."""
        name, weight, bias = self._affine
        convolved = self.block.convolved(self.block.values(), x)
        normal, back = (convolved - self.mean) / self.std, self.by_convolution(convolved)
        found = {
            self.weight: self.weight_gradient(x, back),
            f"{self.block.name}.bias": back.sum(dim=(0, 2, 3)),
            f"{name}.weight": (self.cotangent * normal).sum(dim=(0, 2, 3)),
            f"{name}.bias": self.cotangent.sum(dim=(0, 2, 3)),
        }
        own = {self.block.name: weight * normal + bias}
        own |= {key: found[key] for key in self.parameters}
        (below,) = torch.autograd.grad(convolved, x, back, create_graph=True)
        return own | self.statistics_of({name: convolved}), below


def with_statistics(function: BlockFunction, observed: Mapping[str, Tensor]) -> NormFunction | None:
    """The function with the observed statistics of its BatchNorm; None where it has none.

    Parameters
    ----------
    function : BlockFunction
        Of any block.
    observed : mapping of str to Tensor
        What is observed, by name.
    """
    layers, groups = function.block.layers, function.block.groups
    if [type(module) for _, module in layers] != [nn.BatchNorm2d] or groups > 1:
        return None
    ((name, norm),) = layers
    keys = ("running_mean", "running_var", "bias", "weight")
    if not all(f"{name}.{key}" in observed for key in keys):
        return None
    count = function.cotangent[:, 0].numel()
    mean, variance, by_bias, by_weight = (observed[f"{name}.{key}"] for key in keys)
    std = (variance.clamp(min=0) * (count - 1) / count + norm.eps).sqrt()
    given = (mean, std, by_bias / count, by_weight / count)
    own = {f.name: getattr(function, f.name) for f in fields(BlockFunction)}
    names = ("mean", "std", "by_bias", "by_weight")
    each = zip(names, given, strict=True)
    return NormFunction(**own, **{key: value[:, None, None] for key, value in each})

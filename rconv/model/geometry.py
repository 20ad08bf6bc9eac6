"""Shapes and linear algebra of one convolution."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from rconv.model.activations import Activation


@dataclass(frozen=True)
class Geometry:
    """Shapes of one convolution.

    `input` is (C, H, W), `output` (D, Ho, Wo); the others are (rows, columns) each.
    """

    input: tuple[int, int, int]
    output: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def offsets(self) -> int:
        """Kernel offsets, kh·kw."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Pixels of one input channel, H·W."""
        return self.input[1] * self.input[2]

    @property
    def positions(self) -> int:
        """Output positions L = Ho·Wo."""
        return self.output[1] * self.output[2]

    @property
    def unknowns(self) -> int:
        """Entries of the input, C·H·W."""
        return self.input[0] * self.pixels

    @property
    def gradient_rows(self) -> int:
        """Gradient constraints over all input channels, C·D·kh·kw."""
        return self.input[0] * self.output[0] * self.offsets

    @property
    def weight_rows(self) -> int:
        """Weight constraints where every output is known, D·L."""
        return self.output[0] * self.positions


@dataclass(frozen=True)
class Stage:
    """One convolution and the activation behind it, with a BatchNorm between them folded in.

    Parameters
    ----------
    name : str
        The convolution's name; its parameters are `name`.weight and `name`.bias.
    weight : Tensor, float64
        Axes (filter D, channel C, kernel row kh, kernel column kw).
    bias : Tensor, float64, or None
        Axis (filter D).
    activation : Activation
        What follows; the identity where something else does.
    geometry : Geometry
        The shapes.
    scale : Tensor, float64, or None
        Axis (filter D): what a BatchNorm behind the convolution multiplies its output with.
        `weight` and `bias` are of both together, the gradients are those of the parameters.
    norm : str or None
        Name of this BatchNorm.
    groups : int
        Parts of the channels that do not meet: `weight` is zero outside of them, and the model's
        parameter has the axes (D, C / groups, kh, kw).
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    activation: Activation
    geometry: Geometry
    scale: Tensor | None = None
    norm: str | None = None
    groups: int = 1
    linear = True
    pool = None

    @property
    def offset(self) -> str:
        """The parameter whose gradient is the sum of Ō over the positions, if the model has it."""
        return f"{self.norm or self.name}.bias"

    @property
    def parameters(self) -> list[str]:
        """Names that its parameters can have."""
        layers = [self.name] if self.norm is None else [self.name, self.norm]
        return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]

    def expanded(self, weight: Tensor) -> Tensor:
        """The model's parameter, or its gradient, with zeros where groups do not meet.

        (..., D, C / groups, kh, kw) → (..., D, C, kh, kw).
        """
        if self.groups == 1:
            return weight
        parts = weight.unflatten(-4, (self.groups, -1))[..., None, :, :, :]
        meet = torch.eye(self.groups, dtype=weight.dtype, device=weight.device)
        return (parts * meet[:, None, :, None, None, None]).flatten(-4, -3).flatten(-5, -4)

    def meeting(self) -> Tensor:
        """(D, C, kh, kw), 1 where a weight is one of the model, 0 between groups."""
        return self.expanded(self.compact(torch.ones_like(self.weight)))

    def compact(self, weight: Tensor) -> Tensor:
        """The model's parameter of an `expanded` one, (D, C, kh, kw)."""
        if self.groups == 1:
            return weight
        parts = weight.unflatten(1, (self.groups, -1)).unflatten(0, (self.groups, -1))
        return parts.diagonal(dim1=0, dim2=2).movedim(-1, 0).flatten(0, 1)

    @cached_property
    def gain(self) -> float:
        """Root mean square that errors of size one in Ō have in convᵀ(Ō): of M's columns."""
        return (float(self.row_norms().square().sum()) / self.geometry.unknowns) ** 0.5

    def evaluate(self, x: Tensor) -> Tensor:
        """Its output, bias included: (N, C, H, W) → (N, D, Ho, Wo)."""
        output = self.convolve(x)
        return output if self.bias is None else output + self.bias[:, None, None]

    def unscaled(self, cotangent: Tensor) -> Tensor:
        """Cotangent (N, D, Ho, Wo) of the convolution's own output, before the BatchNorm."""
        return cotangent if self.scale is None else cotangent * self.scale[:, None, None]

    def convolve(self, x: Tensor) -> Tensor:
        """Output without the bias: (N, C, H, W) → (N, D, Ho, Wo)."""
        g = self.geometry
        return nn.functional.conv2d(x, self.weight, None, g.stride, g.padding, g.dilation)

    def transpose(self, o: Tensor) -> Tensor:
        """Adjoint of `convolve`: (N, D, Ho, Wo) → (N, C, H, W). Propagates the gradient."""
        g = self.geometry
        return torch.nn.grad.conv2d_input(
            (o.shape[0], *g.input), self.weight, o, g.stride, g.padding, g.dilation
        )

    def row_norms(self) -> Tensor:
        """Norm of each weight constraint's row, (D, Ho, Wo)."""
        return self.variance(self.weight.new_ones(1, *self.geometry.input))[0].sqrt()

    def variance(self, x: Tensor) -> Tensor:
        """Variance of the output for independent errors of the input with the variance x."""
        g = self.geometry
        return nn.functional.conv2d(x, self.weight**2, None, g.stride, g.padding, g.dilation)

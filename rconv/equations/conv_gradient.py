"""Gradient constraints: linear in a convolution's input, made of the cotangent of its output.

The gradient of the weights is a sum over the samples b and the output positions (R-CONV, "gradient
constraints"). It holds for every input channel c with the SAME matrix A,

    Σ_b A(Ō_b) · X_b[c] = vec(∂ℓ/∂W[:, c]),      A (D·kh·kw, H·W) made of Ō = ∂ℓ/∂O.

With a stride the pixels and kernel offsets fall into residue classes that do not meet.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from rconv.equations.windows import residue_classes, tiles, window_index
from rconv.linalg.operator import Part, select, shared
from rconv.model.geometry import Geometry

WRITTEN_OUT = 2**27
"""Bytes up to which products with one sample use the matrix, which the Gram matrix needs anyway."""


def gradient_matrix(
    cotangent: Tensor, geometry: Geometry, block: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Gradient constraints' matrix A of each Ō (N, D, Ho, Wo): (N, D·kh·kw, H·W).

    Entry [n, (d, t), q] is Ō[n, d, p] for the position p that multiplies pixel q with kernel offset
    t, else 0. With a block of offsets (m,) and pixels (n,), it is (N, D·m, n).
    """
    n, d = cotangent.shape[:2]
    window = window_index(geometry)
    if block is not None:
        window = window[block[0]][:, block[1]]
    padded = torch.nn.functional.pad(cotangent.reshape(n, d, -1), (0, 1))
    matrix = padded.index_select(2, window.to(cotangent.device).reshape(-1))
    return matrix.reshape(n, d * len(window), window.shape[1])


def gradient_rhs(weight_gradient: Tensor) -> Tensor:
    """∂ℓ/∂W (N, D, C, kh, kw) as right-hand sides (N, D·kh·kw, C) of `gradient_matrix`."""
    n, d, c = weight_gradient.shape[:3]
    return weight_gradient.reshape(n, d, c, -1).transpose(2, 3).reshape(n, -1, c)


@dataclass(frozen=True)
class ConvGradient:
    """The weight gradient of a convolution, as a function of its input.

    See `rconv.linalg.operator.Operator`. The unknown is vec(X), X (B, C, H, W), of B samples. Rows
    are (N, D·kh·kw, C): all channels share a matrix.

    Parameters
    ----------
    geometry : Geometry
        Shapes of the convolution.
    cotangent : Tensor
        Ō of the convolution alone, (N, B, D, Ho, Wo).
    """

    geometry: Geometry
    cotangent: Tensor
    couples = False
    columns = True

    @property
    def samples(self) -> int:
        """B."""
        return self.cotangent.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """(N, B·C·H·W, 1) → (N, D·kh·kw, C)."""
        g = self.geometry
        if self._written_out:
            return self.matrix @ x.reshape(len(x), g.input[0], g.pixels).mT
        maps = x.reshape(-1, self.samples, *g.input)
        backs = self.cotangent.expand(len(maps), *self.cotangent.shape[1:])
        pairs = zip(maps, backs, strict=True)
        shape = (g.output[0], g.input[0], *g.kernel)
        rows = [conv2d_weight(own, shape, back, **self._shifts) for own, back in pairs]
        return gradient_rhs(torch.stack(rows))

    def adjoint(self, rows: Tensor) -> Tensor:
        """(N, D·kh·kw, C) → (N, B·C·H·W, 1)."""
        g = self.geometry
        if self._written_out:
            return (self.matrix.mT @ rows).mT.reshape(len(rows), -1, 1)
        kernels = rows.reshape(-1, g.output[0], g.offsets, g.input[0]).transpose(2, 3)
        kernels = kernels.reshape(-1, g.output[0], g.input[0], *g.kernel)
        backs = self.cotangent.expand(len(kernels), *self.cotangent.shape[1:])
        shape, pairs = (self.samples, *g.input), zip(kernels, backs, strict=True)
        maps = [conv2d_input(shape, own, back, **self._shifts) for own, back in pairs]
        return torch.stack(maps).reshape(len(rows), -1, 1)

    def add_gram(self, gram: Tensor, weight: Tensor) -> None:
        """Add to `gram`: a block AᵀA for each channel, equal where they share their weights."""
        (c, _, _), b, p = self.geometry.input, self.samples, self.geometry.pixels
        blocks = gram.view(-1, b, c, p, b, c, p)
        alike = shared(weight)
        for channel in range(c):
            if channel == 0 or not alike:
                own = weight if alike else weight[..., channel : channel + 1]
                rows = (self.matrix * own).to(gram.dtype)
                square = (rows.mT @ rows).reshape(-1, b, p, b, p)
            blocks[:, :, channel, :, :, channel] += square

    def row_norms(self) -> Tensor:
        """(N, D·kh·kw, 1)."""
        g = self.geometry
        window = window_index(g).to(self.cotangent.device)
        inside = self.cotangent.new_zeros(g.positions + 1, g.offsets)
        inside[window, torch.arange(g.offsets, device=window.device)[:, None]] = 1.0
        squares = self.cotangent.square().flatten(3).sum(dim=1) @ inside[:-1]
        return squares.sqrt().flatten(1)[..., None]

    def select(self, where: Tensor | list[int]) -> "ConvGradient":
        """Of some of the N systems."""
        return replace(self, cotangent=select(self.cotangent, where))

    def parts(self, *, alone: bool) -> list[Part]:
        """Independent rows: residue classes, or all of them where the operator is not `alone`."""
        g = self.geometry
        if not alone:
            return [self.part(torch.arange(g.offsets), torch.arange(g.pixels))]
        return (
            [self._tiled()] if tiles(g) else [self.part(*members) for members in residue_classes(g)]
        )

    def part(self, offsets: Tensor, pixels: Tensor) -> Part:
        """The rows of m' kernel offsets and p' pixels that meet: (N, D·m', B·p')."""
        g, samples = self.geometry, torch.arange(self.samples)[:, None, None]
        channels = torch.arange(g.input[0]) * g.pixels
        index = (samples * g.unknowns + pixels[:, None] + channels).reshape(-1, g.input[0])

        def take(rows: Tensor) -> Tensor:
            own = rows.reshape(len(rows), -1, g.offsets, rows.shape[2])
            return own[:, :, offsets.to(rows.device)].flatten(1, 2)

        return Part(index, lambda: self.matrix_of((offsets, pixels)), take)

    def _tiled(self) -> Part:
        """All rows where windows tile the input: ∂ℓ/∂W = Ōᵀ U.

        U, (B·L, C·kh·kw), has a window in each row, and all its columns share the matrix Ōᵀ.
        """
        g, samples = self.geometry, self.samples
        places = torch.arange(samples * g.unknowns).reshape(
            samples, g.input[0], g.output[1], g.kernel[0], g.output[2], g.kernel[1]
        )
        index = places.permute(0, 2, 4, 1, 3, 5).reshape(samples * g.positions, -1)

        def take(rows: Tensor) -> Tensor:
            own = rows.expand(-1, -1, g.input[0]).reshape(len(rows), -1, g.offsets, g.input[0])
            return own.transpose(2, 3).flatten(2)

        return Part(index, lambda: self.cotangent.flatten(3).transpose(1, 2).flatten(2), take)

    @cached_property
    def matrix(self) -> Tensor:
        """(N, D·kh·kw, B·H·W)."""
        return self.matrix_of(None)

    def matrix_of(self, block: tuple[Tensor, Tensor] | None) -> Tensor:
        """Rows and columns of the matrix, the samples side by side."""
        n, b = self.cotangent.shape[:2]
        each = gradient_matrix(self.cotangent.flatten(0, 1), self.geometry, block)
        each = each.reshape(n, b, *each.shape[1:])
        return each[:, 0] if b == 1 else each.transpose(1, 2).flatten(2)

    @property
    def _written_out(self) -> bool:
        g = self.geometry
        size = 8 * len(self.cotangent) * g.output[0] * g.offsets * g.pixels
        return self.samples == 1 and size <= WRITTEN_OUT

    @property
    def _shifts(self) -> dict[str, tuple[int, int]]:
        g = self.geometry
        return {"stride": g.stride, "padding": g.padding, "dilation": g.dilation}

"""The equations of one convolution's input for the samples of a batch, side by side, matrix-free.

Weight rows are each sample's own. Gradient rows are shared, since the gradient of the weights is
summed over the samples,

    Σ_b A(Ō_b) · X_b[c] = vec(∂ℓ/∂W[:, c]).

They are the convolution of the maps with their cotangents, and its adjoint that of the rows with
the cotangents: nothing but maps is stored. One sample is the case B = 1.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from rconv.equations.gradient import gradient_matrix
from rconv.equations.precondition import Block, Preconditioner
from rconv.equations.weighing import TwoKinds
from rconv.equations.weight import weight_gram
from rconv.equations.windows import residue_classes
from rconv.linalg.equations import FREE, UNKNOWN
from rconv.model.geometry import Stage

ONE = torch.ones((), dtype=torch.float64)


@dataclass(frozen=True)
class BatchSystem(TwoKinds):
    """The weighted equations of B samples; see `rconv.linalg.equations.Equations`.

    The unknown is vec(X), (1, B·C·H·W, 1), sample by sample. The rows are those of the gradient,
    then those of the weights.

    Parameters
    ----------
    stage : Stage
        The convolution.
    cotangent : Tensor
        Ō of each sample, (B, D, Ho, Wo), of the convolution alone.
    gradient : Tensor
        ∂ℓ/∂W summed over the samples, (D, C, kh, kw).
    output : Tensor
        O - b where it is known, (B, D, Ho, Wo).
    row_weight : Tensor
        Weight of each weight row, 0 where the output is unknown; shaped as `output`.
    gradient_weight : Tensor
        Weight of each gradient row, broadcasts to (D, 1, kh, kw): all channels share the matrix.
    gradient_error : Tensor
        Standard deviation of the errors of `gradient` times its weight, broadcasts likewise.
    output_error : Tensor
        That of `output` times `row_weight`, broadcasts to it.
    bounds : tuple of float
        Of X.
    has_gradients : bool
        Whether the gradient rows are used; all zero else.
    """

    stage: Stage
    cotangent: Tensor
    gradient: Tensor
    output: Tensor
    row_weight: Tensor
    gradient_weight: Tensor = ONE
    gradient_error: Tensor = UNKNOWN
    output_error: Tensor = UNKNOWN
    bounds: tuple[float, float] = FREE
    has_gradients: bool = True

    @property
    def unknowns(self) -> int:
        """n = B·C·H·W."""
        return len(self.output) * self.stage.geometry.unknowns

    @property
    def rhs(self) -> Tensor:
        """b, (1, m, 1)."""
        gradient = self.gradient_weight * self.gradient * self.has_gradients
        return self._rows(gradient, self.row_weight * self.output)

    def product(self, x: Tensor) -> Tensor:
        """A x of all rows: (1, n, 1) → (1, m, 1)."""
        maps = x.reshape(-1, *self.stage.geometry.input)
        own, outputs = torch.zeros_like(self.gradient), torch.zeros_like(self.output)
        if self.has_gradients:
            own = conv2d_weight(maps, self.gradient.shape, self.cotangent, **self._shifts)
        if self._has_outputs:
            outputs = self.stage.convolve(maps)
        return self._rows(self.gradient_weight * own, self.row_weight * outputs)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Aᵀ r: (1, m, 1) → (1, n, 1)."""
        gradient, weight = rows.flatten().split([self.gradient.numel(), self.output.numel()])
        own = self.gradient_weight * gradient.reshape(self.gradient.shape)
        back = rows.new_zeros(len(self.output), *self.stage.geometry.input)
        if self.has_gradients:
            back = back + conv2d_input(back.shape, own, self.cotangent, **self._shifts)
        if self._has_outputs:
            weight = self.row_weight * weight.reshape(self.output.shape)
            back = back + self.stage.transpose(weight)
        return back.reshape(1, -1, 1)

    def normal_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """AᵀA of all rows, (1, n, n), dense, in this precision."""
        g, batch = self.stage.geometry, len(self.output)
        gram = self.gradient.new_zeros(batch, g.unknowns, batch, g.unknowns, dtype=dtype)
        for i, own in enumerate(self.row_weight.to(dtype)):
            gram[i, :, i] = weight_gram(self.stage.weight.to(dtype), own.flatten(1), g)
        if not self.has_gradients:
            return gram.reshape(1, self.unknowns, self.unknowns)
        factor = self.gradient_weight.expand(g.output[0], 1, *g.kernel).reshape(-1, 1)
        rows = [a * factor for a in gradient_matrix(self.cotangent, g)]
        matrix = torch.cat(rows, dim=1).to(dtype)
        shared = (matrix.mT @ matrix).reshape(batch, g.pixels, batch, g.pixels)
        for c in range(g.input[0]):
            cut = slice(c * g.pixels, (c + 1) * g.pixels)
            gram[:, cut, :, cut] += shared
        return gram.reshape(1, self.unknowns, self.unknowns)

    def weighted(self, gradient: float | Tensor, weight: float | Tensor) -> "BatchSystem":
        """Both blocks multiplied: by a factor, or row by row."""
        return replace(
            self,
            gradient_weight=self.gradient_weight * gradient,
            row_weight=self.row_weight * weight,
            gradient_error=self.gradient_error * gradient,
            output_error=self.output_error * weight,
        )

    def row_sizes(self) -> tuple[Tensor, Tensor]:
        """Norms of the rows of both kinds, as they are weighed: those of one channel."""
        g = self.stage.geometry
        ones = self.output.new_ones(len(self.output), 1, *g.input[1:])
        shape, squares = (g.output[0], 1, *g.kernel), self.cotangent.square()
        gradient = conv2d_weight(ones, shape, squares, **self._shifts).clamp(min=0).sqrt()
        return gradient * self.gradient_weight, self.stage.row_norms() * self.row_weight

    def preconditioner(self) -> Preconditioner:
        """P⁻¹ for these rows, as they are weighed."""
        g, batch = self.stage.geometry, len(self.output)
        squares = (self.stage.row_norms() * self.row_weight).square().sum()
        factor = self.gradient_weight.expand(g.output[0], 1, *g.kernel).flatten(1)
        blocks = []
        for offsets, pixels in residue_classes(g) if self.has_gradients else ():
            parts = gradient_matrix(self.cotangent, g, (offsets, pixels))
            weight = factor[:, offsets].reshape(-1, 1)
            blocks.append(Block.of(torch.cat([own * weight for own in parts], dim=1), pixels))
        shape = (batch, g.input[0], g.pixels)
        return Preconditioner.of(blocks, shape, float(squares / self.unknowns))

    @cached_property
    def _has_outputs(self) -> bool:
        """Whether any output is known."""
        return bool(self.row_weight.any())

    @property
    def _shifts(self) -> dict[str, tuple[int, int]]:
        g = self.stage.geometry
        return {"stride": g.stride, "padding": g.padding, "dilation": g.dilation}

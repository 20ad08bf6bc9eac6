"""Everything that is observed of a block, as a nonlinear function of its input.

For a block f with parameters θ and the cotangent S of its output,

    r(X) = ( f(X),  ∂⟨S, f(X; θ)⟩ / ∂θ,  batch statistics ),

so that the equations of the input are r(X) = what was observed. Nothing in it is special to one
kind of layer: derivatives are PyTorch's own. Of a convolution alone it is what `ConvOutput` and
`ConvGradient` write out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rconv.model.activations import Activation
from rconv.model.blocks import Block

SILENT = 1e-9
"""Share of the largest entry below which the output of an activation counts as zero."""

BELOW, ITSELF = "below", "itself"
"""Names of the rows that the offset of the layer below gives, and of known entries of the map."""


@dataclass(frozen=True)
class BlockFunction:
    """r(X) of one client's step, as one vector.

    Parameters
    ----------
    block : Block
        f.
    cotangent : Tensor
        S, (B, D, H', W').
    parameters : tuple of str
        Those whose gradients are observed.
    statistics : tuple of str
        Buffers of its BatchNorms, as `layer.running_mean`, whose batch values are observed.
    mix : Tensor or None
        (r, D), orthonormal rows: combinations of the filters that stand in place of all of them in
        the gradient of the convolution's weight. The derivative by its output has no more rank
        than there are positions, so that a few combinations say what hundreds of filters do.
    """

    block: Block
    cotangent: Tensor
    parameters: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    mix: Tensor | None = None

    @property
    def weight(self) -> str:
        """Name of the convolution's weight."""
        return f"{self.block.name}.weight"

    def parts(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What is observed of an input (B, C, H, W), and the derivative of ⟨S, f⟩ by it.

        The former by name: the output, which has the name of the block, gradients, statistics.
        """
        values, seen = self.block.values(), {}
        own = [name for name in self.parameters if name != self.weight or self.mix is None]
        trained = {name: values[name].clone().requires_grad_() for name in own}
        convolved = self.block.convolved(values | trained, x)
        output = self.block.after(values | trained, convolved, seen)
        loss = (output * self.cotangent).sum()
        wanted = [*trained.values(), convolved, x]
        options = {"allow_unused": True, "materialize_grads": True}
        *gradients, by_output, back = torch.autograd.grad(
            loss, wanted, create_graph=True, **options
        )
        found = dict(zip(own, gradients, strict=True))
        if self.mix is not None:
            found[self.weight] = self.weight_gradient(x, by_output)
        ordered = {name: found[name] for name in self.parameters}
        return {self.block.name: output, **ordered, **self.statistics_of(seen)}, back

    def mixed(self, cotangent: Tensor) -> Tensor:
        """(B, D, Ho, Wo) → (B, r, Ho, Wo), or as it is."""
        return cotangent if self.mix is None else torch.einsum("rd,bdhw->brhw", self.mix, cotangent)

    def weight_gradient(self, x: Tensor, by_output: Tensor) -> Tensor:
        """∂ℓ/∂W, (D, C, kh, kw), or of r combinations of filters."""
        g, mix = self.block.geometry, self.mix
        filters = g.output[0] if mix is None else len(mix)
        few = x.new_zeros(filters, g.input[0], *g.kernel, requires_grad=True)
        output = torch.nn.functional.conv2d(x, few, None, g.stride, g.padding, g.dilation)
        (found,) = torch.autograd.grad(output, few, self.mixed(by_output), create_graph=True)
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """(n,) → (m,)."""
        return MapFunction((self,))(x)

    def statistics_of(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean and unbiased variance of the inputs of BatchNorms, as they enter the buffers."""
        found = {}
        for name in self.statistics:
            layer, _, kind = name.rpartition(".")
            own = seen[layer].transpose(0, 1).flatten(1)
            found[name] = own.mean(dim=1) if kind == "running_mean" else own.var(dim=1)
        return found


@dataclass(frozen=True)
class MapFunction:
    """Everything that is observed of a map, as one vector: by the blocks that take it, and by it.

    Parameters
    ----------
    blocks : tuple of BlockFunction
        One or more, of one input.
    itself : bool
        Whether entries of the map are known; they come last but for `below`.
    below : Activation or None
        The activation whose output the map is, if the sum over the positions of the derivative by
        its input is observed. That derivative scales as 1 / X where a block normalises.
    direct : Tensor or None
        (B, C, H, W), the derivative of the loss by the map on other ways than through the blocks.
    """

    blocks: tuple[BlockFunction, ...]
    itself: bool = False
    below: Activation | None = None
    direct: Tensor | None = None

    @torch.enable_grad()
    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """What is observed of a map (B, C, H, W), by name; see `BlockFunction`."""
        x = x if x.requires_grad else x.clone().requires_grad_()
        found: dict[str, Tensor] = {}
        total = torch.zeros_like(x) if self.direct is None else self.direct
        for block in self.blocks:
            parts, back = block.parts(x)
            found, total = found | parts, total + back
        if self.itself:
            found[ITSELF] = x
        if self.below is not None:
            sure = torch.where(x.abs() > SILENT * x.detach().abs().max(), x, 0.0)
            found[BELOW] = (total * self.below.derivative(sure)).sum(dim=(0, 2, 3))
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """(n,) → (m,)."""
        first = self.blocks[0]
        maps = x.reshape(len(first.cotangent), *first.block.geometry.input)
        return torch.cat([part.flatten() for part in self.parts(maps).values()])


@dataclass(frozen=True)
class Linearised:
    """The derivative of a function at one point; see `rconv.linalg.operator.Operator`.

    Parameters
    ----------
    product, transposed : callable
        J v, (n,) → (m,), and Jᵀ r.
    height, width : int
        m and n.
    """

    product: Callable[[Tensor], Tensor] = field(repr=False)
    transposed: Callable[[Tensor], Tensor] = field(repr=False)
    height: int
    width: int
    couples = True
    columns = False

    def apply(self, x: Tensor) -> Tensor:
        """(1, n, 1) → (1, m, 1)."""
        return self.product(x.flatten())[None, :, None]

    def adjoint(self, rows: Tensor) -> Tensor:
        """(1, m, 1) → (1, n, 1)."""
        return self.transposed(rows.flatten())[None, :, None]

    def row_norms(self) -> Tensor:
        """One for all: the root mean square, by a random vector."""
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.width, generator=generator, dtype=torch.float64)
        return (self.product(v).norm() / self.height**0.5)[None, None, None]

    def select(self, where: Tensor | list[int]) -> "Linearised":
        """The same: there is one system."""
        return self


@torch.enable_grad()
def linearise(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Linearised]:
    """The value (m,) of a function at x (n,), and its derivative there."""
    x = x.detach().requires_grad_()
    rows = function(x)
    # Jᵀr is linear in r, and its own transpose is J.
    r = torch.zeros_like(rows, requires_grad=True)
    (back,) = torch.autograd.grad(rows, x, r, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, r, v, retain_graph=True)[0]

    def transposed(v: Tensor) -> Tensor:
        return torch.autograd.grad(rows, x, v, retain_graph=True)[0]

    return rows.detach(), Linearised(product, transposed, len(rows), len(x))


@torch.enable_grad()
def pulled_back(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """The derivative of ⟨cotangent, function(x)⟩ by x."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x, cotangent)[0]

"""Where a network ends: at its first Linear, or at a convolution below a part that is not read."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Hidden:
    """A ReLU or LeakyReLU behind the first Linear, and the network above it.

    `slope` is the derivative of the activation where its input is negative, 0 for ReLU. The second
    Linear has this `name` and, in float64, V (K₂, m) and c (K₂,). `rest` is what follows it up to
    the logits, in float64; nothing where it makes the logits.
    """

    slope: float
    name: str
    weight: Tensor
    bias: Tensor
    rest: tuple[nn.Module, ...]

    def activation(self, inputs: Tensor) -> Tensor:
        """The activation's output, any shape."""
        return torch.where(inputs > 0, inputs, self.slope * inputs)

    def derivative(self, inputs: Tensor) -> Tensor:
        """The activation's derivative, any shape."""
        return self.slope + (1 - self.slope) * (inputs > 0).to(inputs)

    def logits(self, second: Tensor) -> Tensor:
        """Logits (N, K) of the second Linear's output (N, K₂)."""
        for module in self.rest:
            second = module(second)
        return second


@dataclass(frozen=True)
class Head:
    """The first Linear, and whether it is also the last.

    Parameters
    ----------
    weight : Tensor, float64
        Axes (output K, input n).
    last : bool
        Whether the loss follows directly.
    logits : str or None
        Name of the Linear that makes the logits, whose gradients reveal the label; None where
        something other than LogSoftmax follows it.
    hidden : Hidden or None
        What follows it where it is a hidden layer that batches are disaggregated at.
    """

    name: str
    weight: Tensor
    has_bias: bool
    last: bool
    logits: str | None
    hidden: Hidden | None = None

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters whose gradients the attack starts from."""
        return [f"{self.name}.weight", f"{self.name}.bias"]


@dataclass(frozen=True)
class Embedding:
    """A learned term that is added to a convolution's output, with a separate entry at each place.

    So the gradient of this parameter holds the derivative Ō of the loss by the output, entry for
    entry: `index`, (D, Ho, Wo), int64, is the entry of the flattened parameter that is added to
    each output.
    """

    name: str
    index: Tensor


@dataclass(frozen=True)
class ConvEntry:
    """How a network is entered whose upper part is not read: at a convolution near its end.

    It is the last node; or that is a sum that its output is a term of.

    Parameters
    ----------
    embedding : Embedding or None
        What determines the derivative of the loss by its output; None where its own gradients must.
    logits : str or None
        Name of the Linear with a bias that the model ends in, whose gradient is the derivative of
        the loss by the logits; without an embedding it may be None.
    reason : str
        Why the model is not read up to its first Linear.
    subspace : Tensor or None
        Without an embedding, of `rconv.model.entry_convolutions.cotangent_subspace`.
    """

    name: str
    embedding: Embedding | None
    logits: str | None
    reason: str
    subspace: Tensor | None = None

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters whose gradients the attack starts from."""
        return [self.embedding.name if self.embedding else f"{self.name}.weight"]

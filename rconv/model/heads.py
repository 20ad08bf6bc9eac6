"""Where a network ends: at its first Linear, or at a convolution below a part that is not read."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """The first Linear, and whether it is also the last.

    Parameters
    ----------
    name : str
        The Linear's name.
    weight : Tensor, float64
        Axes (output K, input n).
    has_bias : bool
        Whether it has one.
    last : bool
        Whether the loss follows directly.
    logits : str or None
        Name of the Linear that makes the logits, whose gradients reveal the label; None where
        something other than LogSoftmax follows it.
    """

    name: str
    weight: Tensor
    has_bias: bool
    last: bool
    logits: str | None

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters whose gradients the attack starts from."""
        return [f"{self.name}.weight", f"{self.name}.bias"]


@dataclass(frozen=True)
class Embedding:
    """A learned term that is added to a convolution's output, with its own entry at each place.

    Its gradient so holds the derivative Ō of the loss by the output, entry for entry.

    Parameters
    ----------
    name : str
        The parameter's name.
    index : Tensor, int64
        (D, Ho, Wo), of each output the entry of the flattened parameter that is added to it.
    """

    name: str
    index: Tensor


@dataclass(frozen=True)
class ConvEntry:
    """How a network is entered whose upper part is not read: at a convolution near its end.

    It is the last node; or that is a sum that its output is a term of.

    Parameters
    ----------
    name : str
        The convolution's name.
    embedding : Embedding or None
        What determines the derivative of the loss by its output; None where its own gradients must.
    logits : str or None
        Name of the Linear with a bias that the model ends in, whose gradient is the derivative of
        the loss by the logits; without an embedding it may be None.
    reason : str
        Why the model is not read up to its first Linear.
    subspace : Tensor or None
        Without an embedding, of `rconv.model.cotangent_subspace.cotangent_subspace`.
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

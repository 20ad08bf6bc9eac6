"""What a model is read into: convolution stages, and the head they end in."""

from dataclasses import dataclass

from torch import Tensor

from rconv.model.geometry import Stage


class UnsupportedModelError(ValueError):
    """The attack does not apply to this model; the message names the layer and why."""


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
        Name of the Linear that makes the logits, whose gradients tell the label; None where
        something other than LogSoftmax follows it.
    """

    name: str
    weight: Tensor
    has_bias: bool
    last: bool
    logits: str | None


@dataclass(frozen=True)
class Network:
    """A model as the attack reads it.

    Parameters
    ----------
    stages : tuple of Stage
        In the order of the forward pass; none where the model starts with its Linear.
    head : Head
        What follows them.
    input_shape : tuple of int
        (C, H, W) of one image.
    """

    stages: tuple[Stage, ...]
    head: Head
    input_shape: tuple[int, int, int]

"""Clients that send weights in place of gradients: one step of plain SGD for many at once."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def sgd_step(model: nn.Module, gradients: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Weights of N clients after one step of plain SGD each: no momentum, no weight decay.

    Parameters
    ----------
    model : Module
        The shared model, float32.
    gradients : mapping of str to Tensor
        Parameter name → `(client N, *parameter shape)`, float32.
    rate : float
        The learning rate η, positive.

    Returns
    -------
    dict of str to Tensor
        Parameter name → `(client N, *parameter shape)`, float32: what each client sends. As
        `torch.optim.SGD` computes it, to the last bit.

    Raises
    ------
    ValueError
        If the rate is not positive, or weights or gradients are not float32.
    """
    if not 0 < rate < float("inf"):
        raise ValueError(f"the learning rate is {rate}: it must be positive and finite")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    _check_single(weights, "model")
    _check_single(gradients, "gradients")
    return {name: torch.add(w, gradients[name], alpha=-rate) for name, w in weights.items()}


def _check_single(tensors: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} of the {what} is {tensor.dtype}: clients that send 32-bit weights compute "
                "in float32; share model.float()"
            )

"""The attack on pruned gradients by one who knows that a zero is a missing entry.

What survives pruning is exact. So no equation changes: those whose gradient is missing get the
weight 0. Only the head needs more: its own missing entries follow from the loss.
"""

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.model.read import UnsupportedModelError, read
from rconv.observe.check import check_gradients
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

NOISE = 1e-12
"""Relative error of what the surviving entries give: float64, after some thousand operations."""


def masked_attack(
    model: nn.Sequential, input_shape: tuple[int, int, int], gradients: Gradients
) -> Reconstruction:
    """Reconstruct images from pruned gradients, whose zeros count as missing.

    The model's first Linear has a bias and makes the logits of a cross-entropy. Gradients are `(N,
    *parameter shape)`, float64, 0 where an entry was pruned. In the answer, as `Attack` gives it,
    `gradient_residual` is over the entries that survived. Entries of the first Linear's input of
    which no product survives are taken for the zeros that a ReLU leaves; one that is not is an
    error of its size.
    """
    head = read(model, input_shape).required_chain("this attack", norms=False).head
    if not head.last or not head.has_bias or len(head.weight) < 2:
        raise UnsupportedModelError(
            f"{head.name}: what is pruned of the logits' gradient is completed by the cross-"
            "entropy, so that the first Linear must have a bias and make all logits itself"
        )
    gradients, _ = check_gradients(model, gradients)
    weight, bias = f"{head.name}.weight", f"{head.name}.bias"
    constant = model.get_parameter(bias).detach().double()
    completed = [
        masked_head(head.weight, constant, *pair)[1]
        for pair in zip(gradients[weight], gradients[bias], strict=True)
    ]
    missing = {n: torch.where(g != 0, 0.0, torch.inf).double() for n, g in gradients.items()}
    unseen = (gradients[weight] == 0).all(dim=1, keepdim=True)
    missing[weight] = torch.where(unseen, 0.0, missing[weight])
    missing[bias] = torch.zeros_like(missing[bias])
    known = {**gradients, bias: torch.stack(completed)}
    return Attack(model, input_shape)(known, noise=Noise(NOISE, std=missing))


def masked_head(
    weight: Tensor, bias: Tensor, weight_gradient: Tensor, bias_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Input v of the first Linear and derivative z̄ by its output, from what is left of z̄ vᵀ.

    A surviving product z̄_i v_j gives v_j where z̄_i is known, and z̄_i where v_j is. What then is
    still missing of z̄ follows from the loss, z̄ = softmax(V v + c) - e_y up to the image's common
    factor: the label's entry is the largest of all, so that it survives and gives that factor.
    Shapes are (K, n) and (K,) for V and c and for the gradients, which are 0 where pruned. Returns
    v (n,), 0 where no product survives, and z̄ (K,).
    """
    z, v, known = bias_gradient, torch.zeros_like(weight_gradient[0]), -1
    while known < (known := int((z != 0).sum() + (v != 0).sum())):
        v = torch.where(v != 0, v, _divide(weight_gradient.T, z))
        z = torch.where(z != 0, z, _divide(weight_gradient, v))
    label = int(z.argmin())
    modelled = torch.softmax(weight @ v + bias, dim=0)
    modelled[label] -= modelled.sum()  # the sum is 1, and cancels less than 1 - softmax would
    if modelled[label] < 0:
        z = torch.where(z != 0, z, modelled * z[label] / modelled[label])
    return torch.where(v != 0, v, _divide(weight_gradient.T, z)), z


def _divide(products: Tensor, factor: Tensor) -> Tensor:
    """Least squares for x (m,) in products (m, k) = x factorᵀ, from the entries that are not 0."""
    squares = ((products != 0) * factor.square()).sum(dim=1)
    return (products * factor).sum(dim=1) / torch.where(squares > 0, squares, 1.0)

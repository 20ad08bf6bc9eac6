"""The attack on pruned gradients by one who knows that a zero is a missing entry.

What survives pruning is exact. So no equation changes: those whose gradient is missing are left
out, and the others are solved as ever. Where they are too few, the input of a layer below which
a ReLU stands is at least known not to be negative.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rconv.attack.activation_vjp import through_activation
from rconv.attack.map_problem import ConvData, MapProblem
from rconv.attack.plan import LayerPlan
from rconv.linalg.system import FREE
from rconv.model.geometry import Stage
from rconv.model.heads import Head
from rconv.model.read import UnsupportedModelError, read
from rconv.observe.check import check_gradients
from rconv.observe.observation import Gradients, per_sample_gradients

NOISE = 1e-12
"""Relative error of what the surviving entries give: float64, after some thousand operations."""


TOUCHING = 1e-10
"""Share of the largest entry up to which one counts as zero: what rounding leaves is some 1e-14."""


@dataclass(frozen=True)
class Unpruned:
    """N images behind pruned gradients, and what the attacker can say of them.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W), float64.
    unseen : Tensor
        (N,) int64, entries of the first Linear's input of which no product survives. They are
        taken for the zeros that a ReLU leaves; one that is not is an error of its size.
    gap : Tensor
        (N, layers) int64, directions that the equations that are left leave open, from the last
        convolution's input to the image.
    residual : Tensor
        (N,), the certificate: relative distance between the entries that survived and those that
        the image gives in their places.
    """

    images: Tensor
    unseen: Tensor
    gap: Tensor
    residual: Tensor


def masked_attack(
    model: nn.Sequential, input_shape: tuple[int, int, int], gradients: Gradients
) -> Unpruned:
    """Reconstruct images from pruned gradients, whose zeros count as missing.

    Parameters
    ----------
    model : Sequential
        The shared model. Its first Linear has a bias and gives the logits of a cross-entropy.
    input_shape : tuple of int
        (C, H, W) of one image.
    gradients : mapping of str to Tensor
        Name → `(N, *parameter shape)`, float64, 0 where an entry was pruned.

    Returns
    -------
    Unpruned
        What comes of them.

    Raises
    ------
    UnsupportedModelError
        A model that the attack cannot pass, or whose first Linear is not as said.
    ValueError
        Gradients that are not those of the model.
    """
    network = read(model, input_shape).required_chain("this attack", norms=False)
    head = network.head
    if not head.last or not head.has_bias or len(head.weight) < 2:
        raise UnsupportedModelError(
            f"{head.name}: what is pruned of the logits' gradient is completed by the cross-"
            "entropy, so that the first Linear must have a bias and make all logits itself"
        )
    gradients, _ = check_gradients(model, gradients)
    bias = model.get_parameter(f"{head.name}.bias").detach().double()
    pairs = zip(gradients[f"{head.name}.weight"], gradients[f"{head.name}.bias"], strict=True)
    images, unseen, gaps, labels = [], [], [], []
    for n, (weight_gradient, bias_gradient) in enumerate(pairs):
        output, logit_gradient = masked_head(head, bias, weight_gradient, bias_gradient)
        unseen.append(int((output == 0).sum()))
        labels.append(int(logit_gradient.argmin()))
        cotangent, gap = logit_gradient @ head.weight, []
        for stage, below in zip(network.stages[::-1], (*network.stages[-2::-1], None), strict=True):
            own = gradients[f"{stage.name}.weight"][n : n + 1]
            positive = below is None or below.activation.low >= 0
            output, cotangent, rank = masked_layer(stage, output, cotangent, own, positive)
            gap.append(stage.geometry.unknowns - rank)
        images.append(output.reshape(network.input_shape))
        gaps.append(gap)
    found = torch.stack(images)
    residual = _certificate(model, found, torch.tensor(labels), gradients)
    return Unpruned(found, torch.tensor(unseen), torch.tensor(gaps), residual)


def masked_head(
    head: Head, bias: Tensor, weight_gradient: Tensor, bias_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Input v of the first Linear and derivative z̄ by its output, from what is left of z̄ vᵀ.

    A surviving product z̄_i v_j gives v_j where z̄_i is known, and z̄_i where v_j is. What then is
    still missing of z̄ follows from the loss, z̄ = softmax(V v + c) - e_y up to the image's common
    factor: the label's entry is the largest of all, so that it survives and gives that factor.

    Parameters
    ----------
    head : Head
        The first Linear, with weight V (K, n).
    bias : Tensor
        c, (K,).
    weight_gradient, bias_gradient : Tensor
        (K, n) and (K,), 0 where pruned.

    Returns
    -------
    v, z̄ : Tensor
        (n,) and (K,); v is 0 where no product survives.
    """
    z, v, known = bias_gradient, torch.zeros_like(weight_gradient[0]), -1
    while known < (known := int((z != 0).sum() + (v != 0).sum())):
        v = torch.where(v != 0, v, _divide(weight_gradient.T, z))
        z = torch.where(z != 0, z, _divide(weight_gradient, v))
    label = int(z.argmin())
    modelled = torch.softmax(head.weight @ v + bias, dim=0)
    modelled[label] -= modelled.sum()  # the sum is 1, and cancels less than 1 - softmax would
    if modelled[label] < 0:
        z = torch.where(z != 0, z, modelled * z[label] / modelled[label])
    return torch.where(v != 0, v, _divide(weight_gradient.T, z)), z


def _divide(products: Tensor, factor: Tensor) -> Tensor:
    """Least squares for x (m,) in products (m, k) = x factorᵀ, from the entries that are not 0."""
    squares = ((products != 0) * factor.square()).sum(dim=1)
    return (products * factor).sum(dim=1) / torch.where(squares > 0, squares, 1.0)


def masked_layer(
    stage: Stage, output: Tensor, cotangent: Tensor, weight_gradient: Tensor, positive: bool
) -> tuple[Tensor, Tensor, int]:
    """Input of one convolution and the derivative by it, from the gradient rows that are left.

    Parameters
    ----------
    stage : Stage
        The convolution and its activation.
    output, cotangent : Tensor
        Y and ∂ℓ/∂Y of the activation, D·Ho·Wo entries.
    weight_gradient : Tensor
        ∂ℓ/∂W, (1, D, C, kh, kw), 0 where pruned.
    positive : bool
        Whether the input is known not to be negative.

    Returns
    -------
    input, cotangent : Tensor
        C·H·W entries each.
    rank : int
        Of the equations, at most C·H·W.
    """
    shape = (1, *stage.geometry.output)
    noise = output.new_full((1,), NOISE)
    below, known = through_activation(
        stage.activation, output.reshape(shape), cotangent.reshape(shape), None, noise
    )
    plan = LayerPlan(stage, bounds=(0.0, torch.inf) if positive else FREE, prior=False)
    observed = (weight_gradient != 0).double()
    layer = ConvData(plan, known, below, weight_gradient, noise, observed=observed)
    solution, report = MapProblem(0, (layer,)).solve()
    value = solution.value[0]
    if positive:  # what rounding leaves of a zero is neither side of the kink
        value = torch.where(value.abs() > TOUCHING * value.abs().max(), value, 0.0)
    return value, stage.transpose(below.value), stage.geometry.unknowns - int(report.open)


def _certificate(
    model: nn.Sequential, images: Tensor, labels: Tensor, gradients: Gradients
) -> Tensor:
    """(N,) relative distance of the recomputed gradients, where the given ones are not 0."""
    own = per_sample_gradients(model, images, labels)
    given = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    found = torch.cat([own[name].flatten(1) for name in gradients], dim=1)
    return ((found - given) * (given != 0)).norm(dim=1) / given.norm(dim=1)

"""Checks a reconstruction without the truth: recompute the gradients and compare."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rconv.linalg.solution import relative
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, per_image


def gradient_residual(
    model: nn.Module, first_linear: str, images: Tensor, cotangent: Tensor, gradients: Gradients
) -> Tensor:
    """(N,): ‖g(x̂) - g‖ / ‖g‖ over all parameters up to the first Linear; inf if undefined.

    The images go through the model by autograd, independently of the attack's own algebra. The
    derivative z̄ of the loss by the first Linear's output is taken as observed: it stands in the
    gradients itself, and recomputing it would only compare how client and attacker round a
    saturated softmax.

    Parameters
    ----------
    model : Module
        The shared model, float64.
    first_linear : str
        Name of its first Linear.
    images : Tensor
        x̂, (N, C, H, W).
    cotangent : Tensor
        z̄, (N, K).
    gradients : dict of str to Tensor
        Name → (N, *parameter shape).
    """
    own = recomputed(model, first_linear, images, cotangent)
    return distance(own, gradients, list(own))


def recomputed(model: nn.Module, first_linear: str, images: Tensor, cotangent: Tensor) -> Gradients:
    """Gradients of all parameters up to the first Linear, by autograd.

    Takes the arguments of `gradient_residual`, and returns name → (N, *parameter shape).
    """
    linear = model.get_submodule(first_linear)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    images, cotangent = (own.to(linear.weight.dtype) for own in (images, cotangent))

    def step(parameters: Gradients, image: Tensor, cotangent: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        hook = linear.register_forward_hook(lambda module, args, output: outputs.append(output))
        functional_call(model, parameters, (image[None],))
        hook.remove()
        return (outputs[0][0] * cotangent).sum()

    try:
        return per_image(
            lambda p: vmap(step)(p, images, cotangent), parameters, len(images), reached=True
        )
    except RuntimeError:  # an operation without a rule for vmap, as a checkpointed one
        pairs = zip(images.split(1), cotangent.split(1), strict=True)
        each = [recomputed_sum(model, first_linear, *pair) for pair in pairs]
        return {name: torch.cat([own[name] for own in each]) for name in each[0]}


def recomputed_sum(
    model: nn.Module, first_linear: str, images: Tensor, cotangent: Tensor
) -> Gradients:
    """The sum over the images of what `recomputed` returns, without one gradient for each.

    Parameters
    ----------
    model, first_linear, images, cotangent
        As `gradient_residual` takes them.

    Returns
    -------
    dict of str to Tensor
        Name → (1, *parameter shape).
    """
    linear, outputs = model.get_submodule(first_linear), []
    hook = linear.register_forward_hook(lambda module, args, output: outputs.append(output))
    parameters = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    with hook, torch.enable_grad():
        functional_call(model, parameters, (images.to(linear.weight.dtype),))
        total = (outputs[0] * cotangent.to(linear.weight.dtype)).sum()
    own = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {n: g[None] for n, g in zip(parameters, own, strict=True) if g is not None}


def where_observed(own: Gradients, gradients: Gradients, noise: Noise) -> Gradients:
    """Recomputed gradients with the entries that are not observed taken from the observed ones.

    Infinite deviations of the noise mark these.
    """
    found = dict(own)
    for name in own.keys() & gradients.keys():
        seen = noise.observed(name, gradients[name])
        if seen is not None:
            found[name] = torch.where(seen, own[name], gradients[name])
    return found


def distance(own: Gradients, observed: Gradients, names: Sequence[str]) -> Tensor:
    """(N,): ‖own - observed‖ / ‖observed‖ over the parameters of these names.

    0 where both are zero, inf where it is no number.
    """
    differences = [(own[name] - observed[name]).flatten(1).norm(dim=1).double() for name in names]
    sizes = [observed[name].flatten(1).norm(dim=1).double() for name in names]
    ratio = relative(torch.stack(differences, dim=1), torch.stack(sizes, dim=1))
    return torch.where(ratio.isfinite(), ratio, torch.inf)

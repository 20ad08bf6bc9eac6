"""Checks a reconstruction without the truth: recompute the gradients and compare."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rconv.linalg.solution import relative
from rconv.observe.observation import Gradients, per_image

EXPLAINED = 1e-2
"""Gradient residual up to which a reconstruction counts as an explanation of the gradients."""


def gradient_residual(
    model: nn.Sequential, first_linear: str, images: Tensor, cotangent: Tensor, gradients: Gradients
) -> Tensor:
    """Relative distance between the gradients of a reconstruction and the observed ones.

    The images go through the model by autograd, independently of the attack's own algebra. The
    derivative z̄ of the loss by the first Linear's output is taken as observed: it stands in
    the gradients itself, and recomputing it would only compare how client and attacker round
    a saturated softmax.

    Parameters
    ----------
    model : the shared model, float64.
    first_linear : name of its first Linear.
    images : x̂, (N, C, H, W).
    cotangent : z̄, (N, K).
    gradients : name → (N, *parameter shape).

    Returns
    -------
    (N,): ‖g(x̂) - g‖ / ‖g‖ over all parameters up to the first Linear; inf where it is not a
    number.
    """
    linear = model.get_submodule(first_linear)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def step(parameters: Gradients, image: Tensor, cotangent: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        hook = linear.register_forward_hook(lambda module, args, output: outputs.append(output))
        functional_call(model, parameters, (image[None],))
        hook.remove()
        return (outputs[0][0] * cotangent).sum()

    own = per_image(lambda p: vmap(step)(p, images, cotangent), parameters, len(images))
    names = _up_to(model, first_linear)
    observed = torch.cat([gradients[name].flatten(1) for name in names], dim=1)
    difference = torch.cat([own[name].flatten(1) for name in names], dim=1) - observed
    ratio = relative(difference, observed)
    return torch.where(ratio.isfinite(), ratio, torch.inf)


def _up_to(model: nn.Module, last: str) -> list[str]:
    """Names of the parameters up to those of the module `last`, in the order of the model."""
    names = [name for name, _ in model.named_parameters()]
    end = max(i for i, name in enumerate(names) if name.rpartition(".")[0] == last)
    return names[: end + 1]

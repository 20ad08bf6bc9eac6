"""What the attacker sees: the gradients that a client computes from its own images."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

Gradients = Mapping[str, Tensor]
"""Parameter name → gradient, shaped as the parameter or with a leading axis N of images."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""loss(logits (1, K), target (1,)) → scalar, a client step on one image."""


def per_sample_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, loss: Loss | None = None
) -> dict[str, Tensor]:
    """Gradients of each image's own loss: N clients, each with a batch of one.

    Parameters
    ----------
    model : the shared model; its dtype and device are those of the computation.
    images : (N, C, H, W), converted to the model's dtype and device.
    targets : (N,) class numbers, or 0 and 1 where the model has one logit.
    loss : the clients' loss (default cross-entropy, or the logistic loss for one logit).

    Returns
    -------
    Parameter name → (N, *parameter.shape); entry [n] is the derivative of image n's loss.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    example = next(iter(parameters.values()))

    def client_loss(parameters: Gradients, image: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (image[None],))
        if logits.shape[-1] == 1:
            logistic = loss or nn.functional.binary_cross_entropy_with_logits
            return logistic(logits[:, 0], target[None].to(logits.dtype))
        return (loss or nn.functional.cross_entropy)(logits, target[None])

    def losses(parameters: Gradients) -> Tensor:
        return vmap(client_loss)(parameters, images.to(example), targets.to(example.device))

    return per_image(losses, parameters, len(images))


def per_image(
    function: Callable[[Gradients], Tensor], parameters: Gradients, count: int
) -> dict[str, Tensor]:
    """Gradients of N scalars, each by its own copy of the parameters.

    Parameters
    ----------
    function : parameters with a leading axis N → (N,), whose entry [n] depends on copy n only.
    parameters : name → tensor.
    count : N.

    Returns
    -------
    Name → (N, *parameter.shape).
    """
    # As torch.func.grad under vmap, which would import PyTorch's compiler, 4 s at the first call.
    copies = {name: p.expand(count, *p.shape).requires_grad_() for name, p in parameters.items()}
    found = torch.autograd.grad(
        function(copies).sum(), list(copies.values()), materialize_grads=True
    )
    return dict(zip(copies, found, strict=True))


def features(model: nn.Sequential, images: Tensor) -> dict[str, Tensor]:
    """Output of every module, by name: the truth that evaluation compares feature maps with.

    Parameters
    ----------
    model : a Sequential.
    images : (N, C, H, W).

    Returns
    -------
    Module name → its output for these images.
    """
    outputs = {}
    with torch.no_grad():
        for name, module in model._modules.items():  # named_children skips repeated ones
            images = module(images)
            outputs[name] = images
    return outputs

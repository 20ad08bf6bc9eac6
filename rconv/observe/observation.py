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

    def logits(parameters: Gradients, image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],))[0]

    def losses(parameters: Gradients) -> Tensor:
        outputs = vmap(logits)(parameters, images.to(example))
        return client_losses(outputs, targets.to(example.device), loss)

    return per_image(losses, parameters, len(images))


def client_losses(logits: Tensor, targets: Tensor, loss: Loss | None) -> Tensor:
    """Loss of each client's batch of one: logits (N, K), targets (N,) → (N,)."""
    if logits.shape[1] == 1:
        loss = loss or nn.functional.binary_cross_entropy_with_logits
        logits, targets = logits[:, 0], targets.to(logits.dtype)
    loss = loss or nn.functional.cross_entropy
    return torch.stack([loss(z, y) for z, y in zip(logits.split(1), targets.split(1), strict=True)])


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

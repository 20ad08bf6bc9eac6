"""What the attacker sees: the gradients that a client computes from its own images."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from rconv.model.batchnorm import without_statistics
from rconv.model.wrappers import tensor_of, unwrapped

Gradients = Mapping[str, Tensor]
"""Parameter name → gradient, shaped as the parameter or with a leading axis N of images."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""loss(logits (1, K), target (1,)) → scalar, a client step on one image."""


@torch.inference_mode(False)  # switches gradients on, also within torch.no_grad
def per_sample_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, loss: Loss | None = None
) -> dict[str, Tensor]:
    """Gradients of each image's own loss: N clients, each with a batch of one.

    Parameters
    ----------
    model : Module
        The shared model; its dtype and device are those of the computation.
    images, targets : Tensor
        (N, C, H, W), converted to the model's dtype and device; and class numbers (N,), or 0 and 1
        where the model has one logit.
    loss : Callable, optional
        The clients' loss, `Loss`. By default cross-entropy, or the logistic loss for one logit.

    Returns
    -------
    dict of str to Tensor
        Parameter name → `(N, *parameter shape)`; entry [n] is the derivative of image n's loss.

    Raises
    ------
    ValueError
        If there is no image, none that the model takes, not one target for each, or no class of a
        target's number.
    """
    model = unwrapped(model)
    parameters = {name: ordinary(p.detach()) for name, p in model.named_parameters()}
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters, so there are no gradients")
    _check_batch(images, targets)
    model = without_statistics(model)  # those of the clients are no gradients
    example = next(iter(parameters.values()))
    images, targets = ordinary(images).to(example), ordinary(targets).to(example.device)

    def output(parameters: Gradients, image: Tensor) -> Tensor:
        return tensor_of(functional_call(model, parameters, (image[None],)))[0]

    def losses(parameters: Gradients) -> Tensor:
        try:
            logits = vmap(output)(parameters, images)
        except ValueError as error:  # of the model
            raise RuntimeError from error
        return client_losses(logits, targets, loss)

    try:
        return per_image(losses, parameters, len(images))
    except RuntimeError:  # an operation without a rule for vmap, as a checkpointed one
        return _one_by_one(model, images, targets, loss)


def _one_by_one(
    model: nn.Module, images: Tensor, targets: Tensor, loss: Loss | None
) -> dict[str, Tensor]:
    """`per_sample_gradients` by one backward pass for each image."""
    parameters = {n: ordinary(p.detach()).requires_grad_() for n, p in model.named_parameters()}
    found = []
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        try:
            logits = tensor_of(functional_call(model, parameters, (image,)))
        except (RuntimeError, ValueError) as error:
            shape, reason = tuple(image.shape[1:]), str(error).splitlines()[0]
            raise ValueError(f"the model takes no image of the shape {shape}: {reason}") from error
        value = client_losses(logits, target, loss).sum()
        own = torch.autograd.grad(
            value, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        found.append(own)
    return dict(zip(parameters, map(torch.stack, zip(*found, strict=True)), strict=True))


def _check_batch(images: Tensor, targets: Tensor) -> None:
    for name, tensor in (("images", images), ("targets", targets)):
        if not torch.is_tensor(tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError(f"{name} must be a dense tensor with values, got {type(tensor)}")
        if tensor.is_complex() or tensor.dim() == 0:
            raise ValueError(f"{name} must be real and have an axis of images")
    if len(images) == 0 or len(images) != len(targets):
        raise ValueError(f"{len(targets)} targets for {len(images)} images: give one for each")


def client_losses(logits: Tensor, targets: Tensor, loss: Loss | None) -> Tensor:
    """Loss of each client's batch of one.

    Takes logits (N, K) and targets (N,), and returns losses (N,). None stands for cross-entropy, or
    the logistic loss for one logit. Raises ValueError if a target is no class, or a loss is not one
    number.
    """
    if loss is None:
        if logits.dim() != 2:
            raise ValueError(
                f"the model's output for one image has the shape {tuple(logits.shape[1:])}, not "
                "that of logits, (K,): give the clients' loss"
            )
        targets = _classes(targets, max(2, logits.shape[1]))
    if logits.shape[1] == 1:
        loss = loss or nn.functional.binary_cross_entropy_with_logits
        logits, targets = logits[:, 0], targets.to(logits.dtype)
    loss = loss or nn.functional.cross_entropy
    losses = [loss(z, y) for z, y in zip(logits.split(1), targets.split(1), strict=True)]
    if any(one.dim() > 0 for one in losses):
        raise ValueError(f"the loss of one image must be one number, got {tuple(losses[0].shape)}")
    return torch.stack(losses)


def _classes(targets: Tensor, count: int) -> Tensor:
    """Class numbers as PyTorch's losses take them; shares of each class, (N, K), as they are."""
    if not ((targets >= 0) & (targets < count)).all():
        raise ValueError(f"targets must be classes from 0 to {count - 1}")
    shares = targets.is_floating_point()
    if (targets.dim() == 1) == shares and count > 2:
        raise ValueError(
            f"targets must be whole numbers (N,) or shares (N, K), got {targets.dtype} of the "
            f"shape {tuple(targets.shape)}"
        )
    return targets if shares else targets.long()


@torch.enable_grad()
def per_image(
    function: Callable[[Gradients], Tensor],
    parameters: Gradients,
    count: int,
    *,
    reached: bool = False,
) -> dict[str, Tensor]:
    """Gradients of N scalars, each by its own copy of the parameters.

    The function takes parameters with a leading axis N and returns (N,), whose entry [n] depends on
    copy n alone. With `reached`, parameters that it does not depend on are left out; otherwise
    their gradients are zero. Returns name → `(N, *parameter shape)`.
    """
    # As torch.func.grad under vmap, which would import PyTorch's compiler, 4 s at the first call.
    copies = {name: p.expand(count, *p.shape).requires_grad_() for name, p in parameters.items()}
    with _differentiable_attention():
        found = torch.autograd.grad(
            function(copies).sum(),
            list(copies.values()),
            allow_unused=reached or None,
            materialize_grads=not reached,
        )
    return {
        name: gradient for name, gradient in zip(copies, found, strict=True) if gradient is not None
    }


@contextlib.contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Compute attention by plain matrix products, which have derivatives for every image.

    The fast path of nn.MultiheadAttention has no derivative, and vmap hides from it that one is
    wanted. The fused products have no rule for vmap.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def ordinary(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that autograd takes if it comes from `torch.inference_mode`."""
    return tensor.clone() if tensor.is_inference() else tensor


def features(model: nn.Sequential, images: Tensor) -> dict[str, Tensor]:
    """Output of every module, by name: the truth that evaluation compares feature maps with."""
    outputs = {}
    with torch.no_grad():
        for name, module in model._modules.items():  # named_children skips repeated ones
            images = module(images)
            outputs[name] = images
    return outputs

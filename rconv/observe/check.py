"""Refuses gradients that are no gradients of the model, before any work starts."""

import torch
from torch import Tensor, nn

from rconv.observe.noise import Rounding
from rconv.observe.observation import Gradients


def check_gradients(model: nn.Module, gradients: Gradients) -> tuple[dict[str, Tensor], Rounding]:
    """Gradients as the attack uses them: float64, on the model's device, leading axis N.

    Parameters
    ----------
    model : the shared model.
    gradients : name → tensor shaped as the parameter, or with a leading axis N.

    Returns
    -------
    Gradients, name → (N, *parameter shape); and the rounding of their coarsest dtype.

    Raises
    ------
    ValueError : a missing or unknown name, a wrong shape, unequal N, NaN or infinity.
    """
    parameters = dict(model.named_parameters())
    missing = [name for name in parameters if gradients.get(name) is None]
    if missing:
        raise ValueError(
            f"no gradient for {', '.join(missing)}: the attack needs every parameter's"
        )
    unknown = [name for name in gradients if name not in parameters]
    if unknown:
        raise ValueError(f"the model has no parameter {unknown[0]!r}; are these its gradients?")
    checked, counts = {}, {}
    for name, parameter in parameters.items():
        gradient = gradients[name]
        if not torch.is_tensor(gradient) or not gradient.is_floating_point():
            raise ValueError(f"the gradient of {name} must be a floating-point tensor")
        counts[name] = _count(name, gradient, parameter)
        gradient = gradient.detach().to(parameter.device, torch.float64)
        checked[name] = gradient.reshape(-1, *parameter.shape)
        if not checked[name].isfinite().all():
            bad = int((~checked[name].flatten(1).isfinite().all(dim=1)).nonzero()[0])
            raise ValueError(f"the gradient of {name} has NaN or infinite entries (image {bad})")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the gradients are of different numbers of images: {counts}")
    coarsest = max((gradients[name].dtype for name in parameters), key=lambda t: torch.finfo(t).eps)
    return checked, Rounding.of(coarsest)


def _count(name: str, gradient: Tensor, parameter: Tensor) -> int:
    if gradient.shape == parameter.shape:
        return 1
    if gradient.shape[1:] == parameter.shape and len(gradient) > 0:
        return len(gradient)
    raise ValueError(
        f"the gradient of {name} has the shape {tuple(gradient.shape)}; expected "
        f"{tuple(parameter.shape)}, or (N, …) of the same for N images"
    )

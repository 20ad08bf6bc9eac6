"""The label, from the sign of the last layer's gradient (iDLG)."""

import torch
from torch import Tensor, nn

from rconv.attack.label_inference import inferred_labels
from rconv.observe.observation import Gradients


def infer_labels(model: nn.Module, gradients: Gradients) -> Tensor:
    """Class of each image, from the gradients of the last Linear.

    For cross-entropy the derivative by the logits, softmax minus one-hot, is negative at the
    label and nowhere else. The bias' gradient is that derivative. Without a bias, each row of the
    weight's gradient is the layer's input times it, so that the label's row is the one that has
    no positive product with any other (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610). One or two
    logits leave the input's sign open there, and it is taken to be positive in sum, as behind a
    ReLU or a Sigmoid.

    Parameters
    ----------
    model : Module
        The shared model; its last Linear must be its last layer.
    gradients : mapping of str to Tensor
        Name → `(N, *parameter shape)`.

    Returns
    -------
    Tensor, int64
        Axis (N,); with a single logit, 0 or 1.

    Raises
    ------
    ValueError
        If the model has no Linear.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError("the model has no Linear layer to read the label from: give the labels")
    prefix = f"{linears[-1]}." if linears[-1] else ""
    logit_gradient = gradients.get(f"{prefix}bias")
    if logit_gradient is None:
        logit_gradient = _up_to_size(gradients[f"{prefix}weight"])
    return inferred_labels(logit_gradient)


def _up_to_size(weight_gradient: Tensor) -> Tensor:
    """(N, K, n) → (N, K), smallest at the label."""
    k = weight_gradient.shape[1]
    if k <= 2:
        return weight_gradient.sum(dim=2)
    products = weight_gradient @ weight_gradient.mT
    others = ~torch.eye(k, dtype=torch.bool, device=products.device)
    return torch.where(others, products, -torch.inf).amax(dim=2)

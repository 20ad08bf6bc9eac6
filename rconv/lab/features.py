"""What the gradients of a Linear reveal although the image below it may be out of reach.

A Linear that takes one vector per image sends ∂ℓ/∂V = z̄ vᵀ and ∂ℓ/∂c = z̄, so that one image's v
follows from these two (`rconv.attack.head`), whatever the layers below are; of a batch, the
softmax of the last layer separates the vectors (`rconv.attack.batch_head`). The signs of the last
layer's gradient are the label.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rconv.attack.batch_head import InseparableError, from_batch
from rconv.attack.head import head_input
from rconv.attack.label_inference import inferred_labels
from rconv.attack.report import CLEAR
from rconv.lab.metrics import matched
from rconv.lab.scenarios import Scenario
from rconv.model.batchnorm import without_statistics
from rconv.model.heads import Head
from rconv.model.wrappers import shared_copy, tensor_of
from rconv.observe.check import check_gradients, declared_noise
from rconv.observe.noise import Noise, Observed
from rconv.observe.observation import Gradients


@dataclass(frozen=True)
class Features:
    """The input of a Linear, computed from gradients and compared with the truth, for N images.

    Parameters
    ----------
    layer : str
        The Linear.
    count : int
        Numbers in its input.
    error : Tensor
        (N,), norm of the error relative to that of the input; infinite where nothing was computed.
    labels : Tensor
        (N,), bool, whether the last layer's gradient revealed the right label.
    """

    layer: str
    count: int
    error: Tensor
    labels: Tensor

    @property
    def exact(self) -> Tensor:
        """(N,), bool: right up to `rconv.attack.report.CLEAR` of their size."""
        return self.error <= CLEAR


def any_exact(found: Features | None) -> bool:
    """Whether the features of some image are exact."""
    return found is not None and bool(found.exact.any())


def features(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    gradients: Gradients,
    noise: Noise | None,
    scenario: Scenario,
) -> Features | None:
    """Compute the widest vector that a Linear's gradients reveal, and compare it with the truth.

    Parameters
    ----------
    model : Module
        The clients' model, in the mode that is asked about.
    images, labels : Tensor
        (N, C, H, W) and (N,), the truth.
    gradients, noise
        As `rconv.lab.scenarios.sent` returns them.
    scenario : Scenario
        How they came about.

    Returns
    -------
    Features or None
        None where no Linear that sends gradients takes one vector per image.
    """
    images = images.to(next(model.parameters()))
    parts = [_vectors(model, own) for own in images.split(scenario.batch)]
    heads = _heads(model, *parts[0], gradients, scenario.together)
    if not heads:
        return None
    head = max(heads, key=lambda own: own.weight.shape[1])
    needed = {name for own in heads for name in own.parameters} & set(gradients)
    known, rounding = check_gradients(model, {n: gradients[n] for n in needed}, partial=True)
    clients = Observed.of(known, declared_noise(model, rounding, None, noise))
    truth = torch.cat([own[head.name] for own, _ in parts]).double()
    if scenario.together > 1:
        found, classes = _of_batch(model, head, clients, truth)
    else:
        found, _ = _of_each(head, clients)
        top = next((own for own in heads if own.last), None)
        classes = torch.full((len(found),), -1)
        if top is not None:
            value, cotangent = _of_each(top, clients)
            weight, bias = top.weight, getattr(model.get_submodule(top.name), "bias", None)
            logits = value @ weight.mT + (0.0 if bias is None else bias.detach().double())
            classes = inferred_labels(cotangent, logits)
    error = (found - truth).norm(dim=1) / truth.norm(dim=1).clamp(min=1e-300)
    return Features(head.name, truth.shape[1], error.cpu(), classes.cpu() == labels.cpu())


def _vectors(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], str | None]:
    """Inputs (N, n) of the Linears that take one vector per image, once; the one of the logits."""
    inputs: dict[str, list[Tensor]] = {}
    copied = shared_copy(without_statistics(model))
    for name, module in copied.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs.setdefault(name, []).append(args[0])
            )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = tensor_of(copied(images))
    found = {n: own[0] for n, own in inputs.items() if len(own) == 1 and own[0].dim() == 2}
    last = next(reversed(found), None)
    made = last is not None and copied.get_submodule(last).out_features == logits.shape[1]
    return found, last if made else None


def _heads(
    model: nn.Module, vectors: dict[str, Tensor], last: str | None, sent: Gradients, together: int
) -> list[Head]:
    """The Linears whose gradients reveal their input.

    A hidden one without a bias leaves the scale open, and a batch asks for the softmax.
    """
    heads = []
    for name in vectors:
        linear = model.get_submodule(name)
        biased, top = linear.bias is not None, name == last
        complete = all(
            sent.get(f"{name}.{own}") is not None for own, _ in linear.named_parameters()
        )
        if complete and (top if together > 1 else (top or biased)) and (biased or together == 1):
            weight = linear.weight.detach().double()
            heads.append(Head(name, weight, biased, top, name if top else None))
    return heads


def _of_each(head: Head, clients: Observed) -> tuple[Tensor, Tensor]:
    """Input (N, n) and logit gradient (N, K) of each client's image; of twins the best one."""
    found = head_input(head, clients.gradients, clients.noise)
    residual = torch.where(found.known, found.residual, torch.inf)
    of_image = [(found.image == i).nonzero()[:, 0] for i in range(int(found.image.max()) + 1)]
    best = torch.stack([own[residual[own].argmin()] for own in of_image])
    return found.value[best], found.cotangent[best]


def _of_batch(
    model: nn.Module, head: Head, clients: Observed, truth: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs (B, n) of a batch and labels (B,), in the order of the truth; NaN and -1 for none."""
    lost = torch.full_like(truth, torch.nan), torch.full((len(truth),), -1)
    if len(truth) >= len(head.weight):
        return lost
    bias = model.get_parameter(f"{head.name}.bias").detach().double()
    try:
        start = from_batch(head, bias, clients, len(truth), (truth.shape[1], 1, 1))
    except InseparableError:
        return lost
    found = start.estimate.value
    order = matched(found, truth[..., None, None])
    return found.flatten(1)[order], start.labels[order]

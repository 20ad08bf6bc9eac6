"""What clients send: gradients and weights as they are, rounded, disturbed, averaged or summed.

A `Client` makes it from the shared model, one image per client and the labels.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.data.datasets import Images
from rconv.lab.defences import add_noise, clip
from rconv.lab.experiment import client_gradients
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, Loss, per_sample_gradients
from rconv.observe.update import gradients_from_update

RATES = (0.1, 0.01, 0.001)
"""Learning rates of the clients that send weights: what people use for plain SGD."""

SENT = ("float64", "float32", *(f"weights, rate {rate:g}" for rate in RATES))


@dataclass(frozen=True)
class Sent:
    """What a server receives of N clients, and what is right.

    Gradients have the shapes `(client N, *parameter shape)`; the model is in the dtype of the
    clients. `noise` is what is known of their errors, by default their rounding. `truths` are
    images (N, C, H, W): an answer that is one of them is right.
    """

    model: nn.Module
    gradients: Gradients
    noise: Noise | None = None
    truths: tuple[Tensor, ...] = ()

    def first(self, count: int) -> "Sent":
        """What the first clients send."""
        gradients = {name: g[:count] for name, g in self.gradients.items()}
        noise = None if self.noise is None else self.noise.select(slice(count), self.gradients)
        truths = tuple(images[:count] for images in self.truths)
        return replace(self, gradients=gradients, noise=noise, truths=truths)

    def attacked(
        self, input_shape: tuple[int, int, int], constraints: str = "auto", *, signs: bool = True
    ) -> Reconstruction:
        """R-CONV on what is sent, for cross-entropy, with the noise where it is known."""
        options = {"constraints": constraints, "signs": signs, "loss": "cross-entropy"}
        return Attack(self.model, input_shape, **options)(self.gradients, noise=self.noise)


Client = Callable[[nn.Module, Tensor, Tensor], Sent]
"""(model, images (N, C, H, W), labels) → what is sent."""


def observe(model: nn.Sequential, architecture: str, truth: Images) -> dict[str, Sent]:
    """What the same step of a float64 model reveals in each of the ways of `SENT`.

    For all ways but the first the model is rounded to float32.
    """
    single = copy.deepcopy(model).float()
    gradients = client_gradients(single, architecture, truth, "float32")
    before = {name: parameter.detach() for name, parameter in single.named_parameters()}
    seen = [Sent(model, client_gradients(model, architecture, truth)), Sent(single, gradients)]
    for rate in RATES:
        after = sgd_step(single, gradients, rate)
        seen.append(Sent(single, *gradients_from_update(before, after, rate)))
    return dict(zip(SENT, seen, strict=True))


def sgd_step(model: nn.Module, gradients: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Weights of N clients after one step of plain SGD each: no momentum, no weight decay.

    Returns name → `(client N, *parameter shape)`, float32, as `torch.optim.SGD` computes it, to the
    last bit. Model and gradients must be float32.
    """
    if not 0 < rate < float("inf"):
        raise ValueError(f"the learning rate is {rate}: it must be positive and finite")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for what, tensors in (("model", weights), ("gradients", gradients)):
        wrong = next((n for n, tensor in tensors.items() if tensor.dtype != torch.float32), None)
        if wrong is not None:
            raise ValueError(
                f"{wrong} of the {what} is {tensors[wrong].dtype}: clients that send 32-bit "
                "weights compute in float32; share model.float()"
            )
    return {name: torch.add(w, gradients[name], alpha=-rate) for name, w in weights.items()}


def several_steps(
    count: int, rate: float, dtype: torch.dtype = torch.float32, *, weights: bool = False
) -> Client:
    """Clients that make several steps of SGD on one image each, and send their sum.

    They compute in float64 or float32. With `weights` they send the new weights instead, from which
    the attacker computes the gradients.
    """

    def send(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
        shared = copy.deepcopy(model).to(dtype)
        before = {name: p.detach() for name, p in shared.named_parameters()}
        runs = [_run(shared, *one, count, rate) for one in zip(images, labels, strict=True)]
        sums, after = ({n: torch.stack([client[n] for client in part]) for n in before}
                       for part in zip(*runs, strict=True))  # fmt: skip
        if weights:
            return Sent(shared, *gradients_from_update(before, after, rate), (images,))
        return Sent(shared, sums, None, (images,))

    return send


def _run(
    model: nn.Module, image: Tensor, label: Tensor, count: int, rate: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sum of the gradients of one client's steps, and its weights after them."""
    model = copy.deepcopy(model)
    after = {name: p.detach() for name, p in model.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in after.items()}
    for _ in range(count):
        step = per_sample_gradients(model, image[None], label[None])
        for name, parameter in after.items():  # shares its memory with the model's
            sums[name] += step[name][0]
            parameter -= rate * step[name][0]
    return sums, after


def pair(
    other: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64, *, same: bool = True
) -> Client:
    """Clients that average the gradients of an image and of another one that is similar.

    `shifted`, `brighter` or `grainy` makes the other image, which has the same label or another
    one. Gradients of any dtype but float64 are rounded from float32.
    """

    def send(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
        shared = model if dtype == torch.float64 else copy.deepcopy(model).float()
        second = other(images)
        with torch.no_grad():
            classes = max(2, shared(images.to(next(shared.parameters()))).shape[1])
        one = per_sample_gradients(shared, images, labels)
        labels = labels if same else (labels + 1) % classes
        two = per_sample_gradients(shared, second, labels)
        mean = {name: ((g + two[name]) / 2).to(dtype) for name, g in one.items()}
        return Sent(shared, mean, None, (images, second))

    return send


def shifted(images: Tensor) -> Tensor:
    """The images one column further to the right, the last column first."""
    return images.roll(1, 3)


def brighter(images: Tensor) -> Tensor:
    """The images 20 % brighter, at most 1."""
    return (1.2 * images).clamp(max=1)


def grainy(images: Tensor) -> Tensor:
    """The images with Gaussian noise of 0.1, within [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
    return (images + 0.1 * noise).clamp(0, 1)


def computed(dtype: torch.dtype) -> Client:
    """Clients that compute in a dtype; for float16 and bfloat16, rounded float32 gradients.

    The attacker keeps the model as it is: the rounding of its weights is undeclared noise.
    """

    def send(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
        client = model if dtype == torch.float64 else copy.deepcopy(model).float()
        gradients = per_sample_gradients(client, images, labels)
        return Sent(model, {n: g.to(dtype) for n, g in gradients.items()}, None, (images,))

    return send


def disturbed(
    change: Callable[[Gradients, nn.Module], Gradients], loss: Loss | None = None
) -> Client:
    """Clients whose gradients are changed before they are sent, unknown to the attacker.

    `change` takes gradients and model; the attacker expects cross-entropy whatever the loss is.
    """

    def send(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
        gradients = per_sample_gradients(model, images, labels, loss)
        return Sent(model, change(gradients, model), None, (images,))

    return send


def averaged(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
    """Each client averages its own image with the next one's: that of either is right."""
    gradients = per_sample_gradients(model, images, labels)
    mean = {name: (g + g.roll(1, 0)) / 2 for name, g in gradients.items()}
    return Sent(model, mean, None, (images, images.roll(1, 0)))


def noisy(gradients: Gradients, model: nn.Module) -> Gradients:
    """Gaussian noise of 1e-6 of each parameter's root mean square."""
    generator = torch.Generator().manual_seed(0)
    return add_noise(gradients, 1e-6, generator)


def decayed(gradients: Gradients, model: nn.Module) -> Gradients:
    """A weight decay of 1e-7 inside the gradients."""
    parameters = dict(model.named_parameters())
    return {name: g + 1e-7 * parameters[name].detach() for name, g in gradients.items()}


def first_zeroed(gradients: Gradients, model: nn.Module) -> Gradients:
    """The first convolution's weight gradient is left out."""
    first = next(iter(gradients))
    return {name: g * 0 if name == first else g for name, g in gradients.items()}


def partly_zeroed(gradients: Gradients, model: nn.Module) -> Gradients:
    """One entry in twenty is replaced by zero."""
    generator = torch.Generator().manual_seed(0)
    return {n: g * (torch.rand(g.shape, generator=generator) > 0.05) for n, g in gradients.items()}


def clipped(gradients: Gradients, model: nn.Module) -> Gradients:
    """Every parameter's gradient is cut to the norm 0.1, on its own."""
    return {name: clip({name: g}, 0.1)[name] for name, g in gradients.items()}


def signs(gradients: Gradients, model: nn.Module) -> Gradients:
    """Only the signs are sent."""
    return {name: g.sign() for name, g in gradients.items()}


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """A loss that is not cross-entropy."""
    return (logits.squeeze() - target.squeeze()).square().sum()

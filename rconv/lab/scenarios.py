"""How gradients come about and reach a server: batch, sum, mode, precision, steps, noise."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rconv.lab import defences
from rconv.lab.architectures import MODES
from rconv.lab.channels import several_steps
from rconv.lab.experiment import as_dtype
from rconv.model.wrappers import tensor_of
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, Loss, client_losses, per_sample_gradients

RATE = 0.01
"""Learning rate of clients that make several local steps."""


@dataclass(frozen=True)
class Scenario:
    """What one gradient that the server receives was computed from, and how.

    Parameters
    ----------
    batch : int
        Images of each client's step, whose mean gradient is taken.
    clients : int
        Clients whose gradients are added before the server sees them (secure aggregation).
    mode, dtype : str or None
        One of `MODES`, and of `DTYPES`, where float16 rounds float32 gradients; None is the model's
        own.
    steps : int
        Local steps of SGD with `RATE`, whose gradients are added.
    noise : float
        σ of DP-SGD: each image's gradient is clipped, and noise of σ times the clipping bound is
        added to the sum. The bound is half the smallest norm, so that every image is clipped. The
        attacker knows σ and the bound. 0 neither clips nor adds.
    """

    batch: int = 1
    clients: int = 1
    mode: str | None = "evaluation"
    dtype: str | None = "float32"
    steps: int = 1
    noise: float = 0.0

    @property
    def epsilon(self) -> float | None:
        """ε of one step on one image, at δ = 1e-5 (`rconv.lab.defences.epsilon_of_release`)."""
        one = self.noise and self.together == self.steps == 1
        return defences.epsilon_of_release(self.noise, defences.DELTA) if one else None

    @property
    def together(self) -> int:
        """Images behind one gradient."""
        return self.batch * self.clients


def matrix(base: Scenario) -> list[tuple[str, str, Scenario]]:
    """Scenarios that differ from a given one in one respect, as (respect, value, scenario).

    The most informative ones first, which a time limit leaves.
    """
    one = replace(base, batch=1, clients=1)
    return [
        ("DP noise", "none", replace(one, noise=0.0)),
        *(("DP noise", f"σ = {s:g}", replace(one, noise=s)) for s in (0.01, 0.1, 1.0)),
        ("Batch", "1 image", one),
        *(("Batch", f"{b} images", replace(one, batch=b)) for b in (2, 4, 8)),
        *(("Mode", f"{mode} mode", replace(one, mode=mode)) for mode in MODES),
        ("Local steps", "1 step", replace(one, steps=1)),
        *(("Local steps", f"{k} steps", replace(one, steps=k)) for k in (2, 5)),
        *(("Precision", name, replace(one, dtype=name)) for name in ("float32", "float16")),
        ("Precision", "float64", replace(one, dtype="float64")),
        ("Sum over clients", "1 client", one),
        *(("Sum over clients", f"{c} clients", replace(one, clients=c)) for c in (4, 16)),
    ]


def client_model(model: nn.Module, scenario: Scenario) -> nn.Module:
    """A copy of the model in the dtype and mode of the clients, which the attacker sees too."""
    if not isinstance(model, nn.Module) or scenario.dtype is scenario.mode is None:
        return model
    client = copy.deepcopy(model)
    if scenario.dtype is not None:
        client = client.to(torch.float64 if scenario.dtype == "float64" else torch.float32)
    return client if scenario.mode is None else client.train(scenario.mode == "training")


def sent(
    client: nn.Module,
    images: Tensor,
    labels: Tensor,
    scenario: Scenario,
    loss: Loss | None = None,
    seed: int = 0,
) -> tuple[Gradients, Noise | None]:
    """What the server receives of images (N, C, H, W): gradients, and what is known of their noise.

    With one image behind each gradient the images are N clients', and gradients have the shape `(N,
    *parameter shape)`; else N is `scenario.together`, and they are shaped as the parameters. The
    noise is None where only the dtype rounds.
    """
    s, noise = scenario, None
    if s.together > 1 and len(images) != s.together:
        raise ValueError(f"{s.together} images are behind one gradient, but {len(images)} given")
    if s.steps > 1:
        if s.together > 1:
            raise ValueError("several local steps are simulated on one image only")
        send = several_steps(s.steps, RATE, next(client.parameters()).dtype)
        gradients = send(client, images, labels).gradients
    elif s.together == 1 or s.noise:
        gradients = per_sample_gradients(client, images, labels, loss)
    else:
        gradients = _summed(client, images, labels, s, loss)
    if s.noise:
        gradients, noise = _private(gradients, s, seed)
    if s.dtype is not None:
        gradients = {name: g.to(as_dtype(s.dtype)) for name, g in gradients.items()}
    return gradients, noise


def _summed(
    client: nn.Module, images: Tensor, labels: Tensor, scenario: Scenario, loss: Loss | None
) -> Gradients:
    """The sum over clients of the gradient of each one's mean loss over its batch."""
    copied = copy.deepcopy(client)
    names, parameters = zip(*copied.named_parameters(), strict=True)
    images = images.to(parameters[0])
    total: Sequence[Tensor] = [torch.zeros_like(p) for p in parameters]
    for x, y in zip(images.split(scenario.batch), labels.split(scenario.batch), strict=True):
        value = client_losses(tensor_of(copied(x)), y.to(x.device), loss).mean()
        total = [a + b for a, b in zip(total, torch.autograd.grad(value, parameters), strict=True)]
    return dict(zip(names, total, strict=True))


def _private(gradients: Gradients, scenario: Scenario, seed: int) -> tuple[Gradients, Noise]:
    """Clipped image by image, added where several are behind one gradient, and noised."""
    bound = float(defences.norms(gradients).min()) / 2
    noised = defences.clip_and_noise(
        gradients,
        scenario.noise,
        bound,
        torch.Generator().manual_seed(seed),
        summed=scenario.together > 1,
    )
    return noised, Noise(std=dict.fromkeys(noised, scenario.noise * bound))

"""What clients send, in five ways: gradients in two precisions, and weights at three rates."""

import copy
from dataclasses import dataclass

from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.data.datasets import Images
from rconv.lab.experiment import client_gradients
from rconv.lab.updates import sgd_step
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients
from rconv.observe.update import gradients_from_update

RATES = (0.1, 0.01, 0.001)
"""Learning rates of the clients that send weights: what people use for plain SGD."""

SENT = ("float64", "float32", *(f"weights, rate {rate:g}" for rate in RATES))


@dataclass(frozen=True)
class Observation:
    """What one way of sending lets the attacker see of N clients.

    Parameters
    ----------
    model : Sequential
        The shared model, in the dtype of the clients.
    gradients : mapping of str to Tensor
        Parameter name → `(client N, *parameter shape)`.
    noise : Noise, optional
        What the attacker knows of their errors; by default their rounding.
    """

    model: nn.Sequential
    gradients: Gradients
    noise: Noise | None = None

    def first(self, count: int) -> "Observation":
        """What is seen of the first clients alone."""
        gradients = {name: g[:count] for name, g in self.gradients.items()}
        known = None if self.noise is None else self.noise.select(slice(count), self.gradients)
        return Observation(self.model, gradients, known)


def observe(model: nn.Sequential, architecture: str, truth: Images) -> dict[str, Observation]:
    """What the same step gives away in each of the ways of `SENT`.

    Parameters
    ----------
    model : Sequential
        The shared model, float64; for all ways but the first it is rounded to float32.
    architecture : str
        Decides the clients' loss.
    truth : Images
        One image per client.

    Returns
    -------
    dict of str to Observation
        A key for each of `SENT`.
    """
    single = copy.deepcopy(model).float()
    gradients = client_gradients(single, architecture, truth, "float32")
    before = {name: parameter.detach() for name, parameter in single.named_parameters()}
    seen = [
        Observation(model, client_gradients(model, architecture, truth)),
        Observation(single, gradients),
    ]
    for rate in RATES:
        after = sgd_step(single, gradients, rate)
        seen.append(Observation(single, *gradients_from_update(before, after, rate)))
    return dict(zip(SENT, seen, strict=True))


def reconstruct(
    seen: Observation,
    input_shape: tuple[int, int, int],
    constraints: str,
    *,
    signs: bool = True,
) -> Reconstruction:
    """R-CONV on what is seen, told the noise where it is known.

    Parameters
    ----------
    seen : Observation
        Of N clients.
    input_shape : tuple of int
        (C, H, W) of an image.
    constraints, signs : str, bool
        As `Attack` takes them.

    Returns
    -------
    Reconstruction
        Of N images.
    """
    attack = Attack(
        seen.model, input_shape, constraints=constraints, loss="cross-entropy", signs=signs
    )
    return attack(seen.gradients, noise=seen.noise)

"""What the attacker received, as files: gradients, or the weights before and after a step."""

import argparse
from dataclasses import dataclass

from torch import Tensor

from rconv.lab.records import Record
from rconv.observe.exchange import read_tensors
from rconv.observe.noise import Noise
from rconv.observe.update import gradients_from_update


@dataclass(frozen=True)
class Received:
    """Gradients, and where they come from.

    Parameters
    ----------
    gradients : dict of str to Tensor
        Name → (N, *parameter shape), or shaped as the parameter.
    noise : Noise or None
        What is known of their errors beyond the rounding of their dtype.
    dtype : str
        Of what was sent, such as "float32".
    settings : dict
        What a record says of the files.
    """

    gradients: dict[str, Tensor]
    noise: Noise | None
    dtype: str
    settings: Record


def check_update(arguments: argparse.Namespace) -> None:
    """Refuse half an update, and what does not go with one.

    Parameters
    ----------
    arguments : Namespace
        With `before`, `after`, `lr`, `weight_decay` and `weights`.

    Raises
    ------
    ValueError
        If one of --before, --after and --lr is missing, or there are two models.
    """
    a = arguments
    needed = {"--before": a.before, "--after": a.after, "--lr": a.lr}
    given = [option for option, value in needed.items() if value is not None]
    missing = [option for option in needed if option not in given]
    if missing and (given or a.weight_decay is not None):
        raise ValueError(f"an update is --before, --after and --lr: {missing[0]} is missing")
    if given and a.weights is not None:
        raise ValueError("--weights and --before: the weights before the step are the model's")


def read_received(arguments: argparse.Namespace) -> Received:
    """Read the file of gradients, or the two files of an update.

    Parameters
    ----------
    arguments : Namespace
        As `check_update` leaves them.

    Returns
    -------
    Received
        Gradients of one client or more.

    Raises
    ------
    ValueError
        If a file cannot be read, or the two are not before and after one step of SGD.
    """
    a = arguments
    if a.after is None:
        gradients = read_tensors(a.gradients)
        return Received(gradients, None, _dtype(a.gradients, gradients), {"gradients": a.gradients})
    before, after = read_tensors(a.before), read_tensors(a.after)
    decay = a.weight_decay or 0.0
    gradients, noise = gradients_from_update(before, after, a.lr, weight_decay=decay)
    settings = {"before": a.before, "after": a.after, "learning_rate": a.lr, "weight_decay": decay}
    return Received(gradients, noise, _dtype(a.after, after), settings)


def _dtype(path: str, tensors: dict[str, Tensor]) -> str:
    found = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    if not found:
        raise ValueError(f"{path} is empty")
    return str(found[0]).removeprefix("torch.")

"""Files that a command reads: gradients or weights, checked before the work starts."""

import argparse
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rconv.cli.terminal import complain
from rconv.data import TRAIN_SIZES
from rconv.data.sources import data_folder
from rconv.lab.records import Record
from rconv.observe.exchange import read_tensors
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients
from rconv.observe.update import gradients_from_update

RANK_ONE = 1e-3
"""Second singular value, relative to the first, up to which a matrix counts as one outer product:
above the rounding of float16 gradients."""

FAR = 0.3
"""Second singular value above which a matrix is far from an outer product, and sum of a bias,
relative to the sum of its sizes, above which it is far from zero. Gradients with so much noise
reconstruct nothing."""


@dataclass(frozen=True)
class Received:
    """Gradients, and where they come from.

    Gradients have the shapes `(N, *parameter shape)`, or those of the parameters. `noise` is what
    is known of their errors beyond the rounding of `dtype`, such as "float32"; `settings` are what
    a record says of the files; `buffers` are the client's after the step.
    """

    gradients: dict[str, Tensor]
    noise: Noise | None
    dtype: str
    settings: Record
    buffers: dict[str, Tensor] | None = None


def check_update(arguments: argparse.Namespace) -> None:
    """Refuse by a ValueError half an update, two models, and --buffers without --gradients."""
    a = arguments
    needed = {"--before": a.before, "--after": a.after, "--lr": a.lr}
    given = [option for option, value in needed.items() if value is not None]
    missing = [option for option in needed if option not in given]
    if missing and (given or a.weight_decay is not None):
        raise ValueError(f"an update is --before, --after and --lr: {missing[0]} is missing")
    if given and a.weights is not None:
        raise ValueError("--weights and --before: the weights before the step are the model's")
    if a.buffers is not None and a.gradients is None:
        raise ValueError("--buffers goes with --gradients; --after holds the buffers already")


def read_received(arguments: argparse.Namespace) -> Received:
    """Read the file of gradients, or the two files of an update, of one client or more.

    Raises ValueError if a file cannot be read, or the two are not before and after one step of SGD.
    """
    a = arguments
    if a.after is None:
        gradients = read_tensors(a.gradients)
        settings = {"gradients": a.gradients}
        buffers = None if a.buffers is None else read_tensors(a.buffers)
        if buffers is not None:
            settings["buffers"] = a.buffers
        return Received(gradients, None, _dtype(a.gradients, gradients), settings, buffers)
    before, after = read_tensors(a.before), read_tensors(a.after)
    decay = a.weight_decay or 0.0
    gradients, noise = gradients_from_update(before, after, a.lr, weight_decay=decay)
    settings = {"before": a.before, "after": a.after, "learning_rate": a.lr, "weight_decay": decay}
    return Received(gradients, noise, _dtype(a.after, after), settings, after)


def _dtype(path: str, tensors: dict[str, Tensor]) -> str:
    found = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    if not found:
        raise ValueError(f"{path} is empty")
    return str(found[0]).removeprefix("torch.")


def check_data(dataset: str, path: str | None) -> None:
    """Refuse a folder of data that does not exist: a mistyped name would become a new folder.

    The path is what --data-dir says, or else the environment variable RCONV_DATA, which does not
    matter for Photos and Digits.
    """
    option = "--data-dir"
    if path is None and dataset in TRAIN_SIZES:
        option, path = "RCONV_DATA:", os.environ.get("RCONV_DATA")
    if not path:
        return
    folder = data_folder(path)
    if not folder.is_dir():
        reason = "is no folder" if folder.exists() else "no such folder, create it first"
        raise ValueError(f"{option} {path}: {reason}")


def check_roles(
    arguments: argparse.Namespace, model: nn.Module, gradients: Gradients | None = None
) -> None:
    """Say before the work if files seem to be exchanged.

    The gradient of the last Linear of one image is an outer product, and with cross-entropy the
    gradient of its bias sums to zero. Weights have neither property, up to rare exceptions, so that
    these two give a warning. What is certain is refused by a ValueError: gradients that are the
    model's weights, or hold its buffers. The model has the weights that were given.
    """
    a = arguments
    before, after = getattr(a, "before", None), getattr(a, "after", None)
    weights = {"--weights": a.weights, "--before": before, "--after": after}
    if before is not None:
        weights["--weights"] = None  # the same file
    for option, path in weights.items():
        last = None if path is None else _last_layer(model, read_tensors(path))
        if last is not None and _second(last[0]) < RANK_ONE and _sum(last[1]) < RANK_ONE:
            complain(
                f"warning: {option}: these look like gradients: the last layer is an outer product"
            )
    if gradients is None:
        return
    _check_not_weights(model, gradients)
    last = _last_layer(model, gradients)
    if last is None or a.batch != 1:
        return
    weight, bias = last
    if after is None and _second(weight) > FAR and _sum(bias) > FAR:
        complain(
            "warning: --gradients: these look like weights: the last layer is no outer product"
        )
    # Softmax minus one-hot is negative at the label alone.
    if after is not None and (bias > 0).sum() == 1 and (bias < 0).sum() > 1:
        complain(
            "warning: --before, --after: exchanged? With cross-entropy the step goes the other way"
        )


def _check_not_weights(model: nn.Module, gradients: Gradients) -> None:
    buffers = [name for name, _ in model.named_buffers() if name in gradients]
    if buffers:
        raise ValueError(f"the file holds {buffers[0]}, a buffer: it holds weights, not gradients")
    weights = {name: p.detach() for name, p in model.named_parameters()}
    if set(weights) == set(gradients) and all(
        g.numel() == weights[name].numel()
        and torch.equal(g.reshape(weights[name].shape).to(weights[name]), weights[name])
        for name, g in gradients.items()
    ):
        raise ValueError("the gradients equal the model's weights: the file holds weights")


def _last_layer(model: nn.Module, tensors: Gradients) -> tuple[Tensor, Tensor] | None:
    """Weight (K, n) and bias (K,) of the last Linear, of the first client, float64 and finite.

    None without a bias, with a single output, or where they are zero.
    """
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not found or found[-1][1].bias is None or min(found[-1][1].weight.shape) < 2:
        return None
    values = []
    for part in ("weight", "bias"):
        value = tensors.get(f"{found[-1][0]}.{part}".lstrip("."))
        shape = getattr(found[-1][1], part).shape
        if value is None or value.shape[value.dim() - len(shape) :] != shape:
            return None
        value = value.detach().double().reshape(-1, *shape)
        if not len(value) or not value[0].any() or not value[0].isfinite().all():
            return None
        values.append(value[0])
    return tuple(values)


def _second(matrix: Tensor) -> float:
    """Second singular value, relative to the first."""
    values = torch.linalg.svdvals(matrix)
    return float(values[1] / values[0]) if values[0] > 0 else 1.0


def _sum(vector: Tensor) -> float:
    """Size of the sum, relative to the sum of the sizes."""
    return float(vector.sum().abs() / vector.abs().sum().clamp(min=1e-300))

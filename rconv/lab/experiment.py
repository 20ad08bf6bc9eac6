"""One experiment: a shared model, clients' gradients, the attack, and the truth as the judge."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.metrics import matched
from rconv.lab.records import Record, score
from rconv.observe.exchange import load_weights
from rconv.observe.observation import per_sample_gradients


@dataclass(frozen=True)
class Experiment:
    """What came out of `run`: images, the attack's answer, and a record of each (see `score`)."""

    truth: datasets.Images
    reconstruction: Reconstruction
    records: list[Record]


def run(
    dataset: str = datasets.DEFAULT,
    indices: Sequence[int] = (0,),
    architecture: str = "lenet_main",
    activation: str | None = None,
    *,
    seed: int = architectures.SEED,
    dtype: str = "float64",
    constraints: str = "auto",
    signs: bool = True,
    filters: Sequence[int] | None = None,
    initialisation: str | None = None,
    batch: int | None = 1,
) -> Experiment:
    """Attack images of a dataset through an architecture, and measure.

    `dataset` and `indices` are those of `rconv.data.datasets.load`; `architecture`, `activation`,
    `seed`, `filters` and `initialisation` those of `rconv.lab.architectures.build`; `constraints`
    and `signs` those of `Attack`. `dtype` is that of the clients' computation, one of
    `rconv.lab.architectures.DTYPES`, where float16 rounds float32 gradients; for `batch` see
    `attack_images`.
    """
    as_dtype(dtype)
    options = {"seed": seed, "filters": filters, "initialisation": initialisation}
    model = shared_model(dataset, architecture, activation, dtype=dtype, **options)
    settings = {"dataset": dataset, **model_settings(architecture, activation, **options)}
    truth = datasets.load(dataset, indices)
    options = {"dtype": dtype, "constraints": constraints, "signs": signs, "batch": batch}
    return attack_images(model, truth, architecture, settings, **options)


def attack_images(
    model: nn.Module,
    truth: datasets.Images,
    architecture: str | None,
    settings: Record,
    *,
    dtype: str = "float64",
    constraints: str | Sequence[str] = "auto",
    signs: bool = True,
    batch: int | None = 1,
    progress: bool = False,
    on_result: Callable[[Experiment], None] | None = None,
) -> Experiment:
    """Attack images through a model, and measure; see `run`.

    Parameters
    ----------
    batch : int, optional
        Not 1: the images are one client's, which sends their mean gradient; what comes back is put
        into their order. None lets the attack read the number from the gradient.
    on_result : callable, optional
        Is called with each group of images as soon as it is finished, in their order; not for a
        batch, which is finished at once.
    """
    count, together = len(truth), batch != 1
    if batch not in (1, None, count):
        raise ValueError(f"a batch of {batch}, but {count} images: they form one, so name {batch}")
    options = {"constraints": constraints, "signs": signs, "loss": "cross-entropy"}
    attack = Attack(model, truth.images.shape[1:], **options)
    gradients = client_gradients(model, architecture, truth, dtype, together=together)
    settings = {**settings, "dtype": dtype, "constraints": constraints}
    start, done = time.perf_counter(), 0

    def measured(found: Reconstruction, originals: datasets.Images, images: int) -> Experiment:
        each = {**settings, "seconds": (time.perf_counter() - start) / images}
        return Experiment(originals, found, score(found, originals, each))

    def finished(part: Reconstruction) -> None:
        nonlocal done
        first, done = done, done + len(part.images)
        on_result(measured(part, truth.select(slice(first, done)), done))

    hook = None if on_result is None or together else finished
    reconstruction = attack(gradients, batch=batch, progress=progress, on_result=hook)
    if together:
        settings["batch"] = count
        reconstruction = _in_order(reconstruction, truth)
    return measured(reconstruction, truth, count)


def _in_order(found: Reconstruction, truth: datasets.Images) -> Reconstruction:
    """The images of a batch, which come back in any order, in that of the truth."""
    read, count = len(found.images), len(truth)
    if read != count:
        raise ValueError(
            f"the gradient of {count} images has the rank of {read}: two of them are alike, or "
            "there are not more classes than images; say how many there are"
        )
    return found.select(matched(found.images.cpu(), truth.images).tolist())


def client_gradients(
    model: nn.Module,
    architecture: str | None,
    truth: datasets.Images,
    dtype: str = "float64",
    *,
    together: bool = False,
) -> dict[str, Tensor]:
    """Gradients that the clients send, one image each: name → `(N, *parameter shape)`.

    An architecture with one logit gets the parity of the labels; None keeps the labels.
    With `together` all images are one client's, whose mean gradient is shaped as the parameters.
    """
    targets = truth.labels
    if architecture is not None:
        targets = architectures.targets(architecture, targets)
    gradients = per_sample_gradients(model, truth.images, targets)
    sent = {name: g.mean(dim=0) for name, g in gradients.items()} if together else gradients
    return {name: g.to(as_dtype(dtype)) for name, g in sent.items()}


def as_dtype(name: str) -> torch.dtype:
    """The dtype of this name; ValueError if it is none of `rconv.lab.architectures.DTYPES`."""
    if name not in architectures.DTYPES:
        raise ValueError(f"unknown dtype {name!r}: use one of {', '.join(architectures.DTYPES)}")
    return getattr(torch, name)


def shared_model(
    dataset: str,
    architecture: str,
    activation: str | None = None,
    *,
    dtype: str = "float64",
    weights: str | None = None,
    device: str = "cpu",
    **options: Any,
) -> nn.Sequential:
    """The model that server and clients share, for a dataset's channels and classes.

    The weights are those that the clients compute with: rounded to float32 unless `dtype` is
    float64. Remaining options go to `architectures.build`.
    """
    if dataset not in datasets.CLASSES:
        raise ValueError(f"unknown dataset {dataset!r}: use one of {', '.join(datasets.CLASSES)}")
    model = architectures.build(
        architecture, datasets.CHANNELS[dataset], datasets.CLASSES[dataset], activation, **options
    )
    if weights is not None:
        load_weights(model, weights)
    return placed(model, dtype, device)


def placed(model: nn.Module, dtype: str, device: str) -> nn.Module:
    """A model in the dtype that clients compute in, on a device; ValueError if there is none."""
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device {device!r} is not available: {str(error).splitlines()[0]}"
        ) from None
    return model.to(target, torch.float64 if dtype == "float64" else torch.float32)


def model_settings(
    architecture: str,
    activation: str | None = None,
    *,
    seed: int = architectures.SEED,
    filters: Sequence[int] | None = None,
    initialisation: str | None = None,
    weights: str | None = None,
) -> Record:
    """What a record says of its model: `shared_model`'s settings, with the defaults filled in."""
    known = architectures.ARCHITECTURES[architecture]
    return {
        "architecture": architecture,
        "activation": architectures.activation_names(architecture, activation)[-1],
        "seed": seed,
        "filters": list(filters or known.filters),
        "initialisation": weights or initialisation or known.initialisation,
    }

"""The model that server and clients share: one of the lab's, in a dtype and on a device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.records import Record
from rconv.observe.exchange import load_weights


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

    Raises
    ------
    ValueError
        If a dataset, a device or a setting is unknown.
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
    own = architectures.ARCHITECTURES[architecture]
    return {
        "architecture": architecture,
        "activation": architectures.activation_names(architecture, activation)[-1],
        "seed": seed,
        "filters": list(filters or own.filters),
        "initialisation": weights or initialisation or own.initialisation,
    }

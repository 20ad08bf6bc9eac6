"""Which model a command is about, and the images that go with it."""

import argparse
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rconv.cli.own import load_own
from rconv.data import datasets
from rconv.data.datasets import photographs
from rconv.lab.architectures import DEFAULT, SEED
from rconv.lab.experiment import model_settings, placed, shared_model
from rconv.lab.records import Record
from rconv.model.weights import check_weights
from rconv.observe.exchange import load_weights


@dataclass(frozen=True)
class Shared:
    """The model that server and clients share.

    Parameters
    ----------
    model : Module
        In the dtype that is asked for.
    input_shape : tuple of int
        (C, H, W) of one image.
    architecture : str or None
        A key of `ARCHITECTURES`; None for a user's own model.
    title : str
        What it is called.
    settings : dict
        What a record says of it.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    architecture: str | None
    title: str
    settings: Record


def check_model(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go with the model that is named.

    Parameters
    ----------
    arguments : Namespace
        With those that `rconv.cli.arguments` gives to every command with a model.

    Raises
    ------
    ValueError
        Half of --model and --input-shape, or what only an architecture of the lab has.
    """
    a = arguments
    if a.model is None:
        if a.input_shape is not None:
            raise ValueError("--input-shape goes with --model")
        return
    if a.input_shape is None:
        raise ValueError("--model needs --input-shape, such as 3,64,64")
    for option in ("activation", "filters", "initialisation"):
        if getattr(a, option) is not None:
            raise ValueError(f"--{option} and --model: your own code says what the model is")


def shared(arguments: argparse.Namespace, dtype: str) -> Shared:
    """Build, or import, the model; with the weights of a file if one is named.

    Parameters
    ----------
    arguments : Namespace
        As `check_model` leaves them.
    dtype : str
        float64; any other is computed in float32.

    Returns
    -------
    Shared
        The model.

    Raises
    ------
    ValueError
        As `load_own`, `shared_model` and `load_weights`.
    """
    a = arguments
    device = getattr(a, "device", "cpu")
    if a.model is None:
        name, options = a.architecture or DEFAULT, given_options(a)
        model = shared_model(a.dataset, name, a.activation, dtype=dtype, device=device, **options)
        check_weights(model)
        shape = (datasets.CHANNELS[a.dataset], 32, 32)
        settings = model_settings(name, a.activation, **options)
        return Shared(model, shape, name, f"{name} on {a.dataset}", settings)
    seed = SEED if a.seed is None else a.seed
    model = load_own(a.model, seed)
    check_weights(model)
    if a.weights is not None:
        load_weights(model, a.weights)
    settings = {
        "architecture": a.model,
        "activation": None,
        "seed": seed,
        "filters": None,
        "initialisation": a.weights or "its own",
    }
    title = f"{a.model} on {' × '.join(map(str, a.input_shape))}"
    return Shared(placed(model, dtype, device), a.input_shape, None, title, settings)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of an architecture that were given; the others have their defaults in the lab."""
    names = ("seed", "filters", "initialisation", "weights")
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def images_for(arguments: argparse.Namespace, shape: tuple[int, int, int]) -> datasets.Images:
    """The images that a command names, in the shape that the model takes.

    Parameters
    ----------
    arguments : Namespace
        With `dataset`, `index` and `data_dir`.
    shape : tuple of int
        (C, H, W). Photographs are to be had in any.

    Returns
    -------
    Images
        The images.

    Raises
    ------
    ValueError
        If the dataset has no images of this shape, or not these.
    """
    a = arguments
    indices = datasets.parse_indices(a.index)
    found = datasets.load(a.dataset, indices, data_dir=a.data_dir)
    if tuple(found.images.shape[1:]) == tuple(shape):
        return found
    if a.dataset != datasets.DEFAULT:
        have = " × ".join(map(str, found.images.shape[1:]))
        raise ValueError(
            f"images of {a.dataset} are {have}, and the model takes {shape}: use -d "
            f"{datasets.DEFAULT}, which come in any shape, or give --gradients"
        )
    every, _ = photographs(shape, max(indices) + 1)
    return replace(found, images=every[found.indices])

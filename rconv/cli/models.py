"""The model that a command is about, from the lab or from a user's own code, and its images."""

import argparse
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from rconv.cli.arguments import FORM
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

    `architecture` is a key of `ARCHITECTURES`, None for a user's model; `title` is what it is
    called, and `settings` are what a record says of it.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    architecture: str | None
    title: str
    settings: Record


def check_model(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go with the model that is named.

    That is half of --model and --input-shape, or what only an architecture of the lab has.
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

    Any dtype but float64 is computed in float32. Raises ValueError as `load_own`, `shared_model`
    and `load_weights` do.
    """
    a = arguments
    device = getattr(a, "device", "cpu")
    if a.model is None:
        name, options = a.architecture or DEFAULT, given_options(a)
        model = shared_model(a.dataset, name, a.activation, dtype=dtype, device=device, **options)
        check_weights(model)
        shape = (datasets.CHANNELS[a.dataset], 32, 32)
        settings = model_settings(name, a.activation, **options)
        model.train(a.mode == "training")
        return Shared(model, shape, name, f"{name} on {a.dataset}", settings)
    seed = SEED if a.seed is None else a.seed
    model = load_own(a.model, seed).train(a.mode == "training")
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
    """The images that a command names, in the shape (C, H, W) that the model takes.

    Photographs come in any shape. Raises ValueError if the dataset has no images of it, or not
    these.
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


def load_own(text: str, seed: int) -> nn.Module:
    """Import a file or a module, and take or make the model that it names, in evaluation mode.

    The text has the `FORM` of a class or a function that needs no arguments, or of a model. The
    seed is that of PyTorch's generator, from which a new model draws its weights. Raises ValueError
    if there is no such file, module or name; if it needs arguments, is or makes no module; if its
    code raises, with the line.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise ValueError(f"--model takes {FORM}, got {text!r}")
    file = place if place.endswith(".py") or os.sep in place else None
    if file is not None and not os.path.isfile(file):
        reason = "is no regular file" if os.path.exists(file) else "no such file"
        raise ValueError(f"--model: {file}: {reason}")
    folder = os.path.dirname(os.path.abspath(file)) if file else os.getcwd()
    with _importing_from(folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _user_code(place):
            module = _of_file(file) if file else importlib.import_module(place)
        torch.manual_seed(seed)  # whatever the import has drawn
        return _model(module, text, name)


def _model(module: ModuleType, text: str, name: str) -> nn.Module:
    """What a module has by this name, called if it is no model yet."""
    if not hasattr(module, name):
        raise ValueError(f"--model {text}: there is no {name} in it")
    found: Any = getattr(module, name)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ValueError(f"--model {text}: is {type(found).__name__}, no torch.nn.Module")
        _check_needs_nothing(found, text)
        with _user_code(text):
            found = found()
    if not isinstance(found, nn.Module):
        raise ValueError(f"--model {text}: makes {type(found).__name__}, no torch.nn.Module")
    return found.eval()


def _check_needs_nothing(found: Any, text: str) -> None:
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ValueError(
            f"--model {text}: needs arguments ({error}); write a function without any that makes "
            "the model, and name that"
        ) from None
    except ValueError:  # a built-in, which does not say what it takes
        pass


def _of_file(file: str) -> ModuleType:
    name = f"_own_{os.path.basename(file).removesuffix('.py')}"
    loader = importlib.machinery.SourceFileLoader(name, file)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module  # where dataclasses look for it
    loader.exec_module(module)
    return module


@contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """Let the code import what lies beside it, as Python lets a script."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Make of anything that the user's code raises a ValueError with its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        machinery = (__file__, importlib.__file__, "<frozen")
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith(machinery)]
        where = f" in line {own[-1].lineno} of {own[-1].filename}" if own else ""
        kind = type(error).__name__
        raise ValueError(f"--model: {what} raises {kind}{where}: {error}") from error

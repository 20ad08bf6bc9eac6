"""A user's own model, from a file or a module: running it is running its author's code."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from rconv.cli.values import FORM


def load_own(text: str, seed: int) -> nn.Module:
    """Import a file or a module, and take or make the model that it names.

    Parameters
    ----------
    text : str
        `FORM`: a class or a function that needs no arguments, or a model.
    seed : int
        Of PyTorch's generator, from which a new model draws its weights.

    Returns
    -------
    Module
        In evaluation mode.

    Raises
    ------
    ValueError
        If there is no such file, module or name; if it needs arguments, is or makes no module; if
        its code raises, with the line.
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
        with _told(place):
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
        with _told(text):
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
def _told(what: str) -> Iterator[None]:
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

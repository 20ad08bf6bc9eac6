"""Gradients and weights as files: safetensors, which hold numbers and nothing that runs."""

import errno
import os
import stat
from os import PathLike

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rconv.files import replacing
from rconv.model.weights import check_weights
from rconv.observe.check import DTYPES
from rconv.observe.observation import Gradients
from rconv.observe.update import BUFFERS


def write_tensors(path: str | PathLike, tensors: Gradients) -> None:
    """Write named tensors to a `.safetensors` file, whole or not at all."""
    data = safetensors.torch.save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    )
    with replacing(path) as file:
        file.write(data)


def read_tensors(path: str | PathLike) -> dict[str, Tensor]:
    """Read a `.safetensors` file of gradients or weights.

    Tensors must have one of the `DTYPES` of gradients, except for BatchNorm's counters. Raises
    ValueError if the file is missing, a pipe, damaged, of another kind, or holds other numbers.
    """
    _check_readable(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a dtype of a newer format
        raise ValueError(
            f"{path} is no readable .safetensors file ({error}); write it with "
            "safetensors.torch.save_file, other formats are not accepted"
        ) from None
    for name, tensor in tensors.items():
        counter = name.rpartition(".")[2] in BUFFERS  # BatchNorm's, of whole numbers
        if tensor.dtype not in DTYPES and not counter:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{path}: {name} is {tensor.dtype}, not one of {kinds}")
    return tensors


def load_weights(model: nn.Module, path: str | PathLike) -> None:
    """Load a state dict from a `.safetensors` file into a model, converted to its dtype.

    Raises ValueError if the file cannot be read, or holds the weights of another model, NaN,
    infinity, or numbers that overflow.
    """
    tensors = read_tensors(path)
    for name, parameter in model.named_parameters():
        if name in tensors and tensors[name].shape[1:] == parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{path} holds gradients, not weights: {name} has the shape "
                f"{tuple(tensors[name].shape)}, one of the model's for each client"
            )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = (str(error).splitlines() * 2)[1].strip()
        raise ValueError(f"{path} holds the weights of another model: {reason}") from None
    try:
        check_weights(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_readable(path: str | PathLike) -> None:
    """ValueError that says why a file cannot be read, or that it is of another kind."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise ValueError(f"{path}: is no regular file")
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP
        reason = "no such file" if missing else f"cannot be read ({error.strerror})"
        raise ValueError(f"{path}: {reason}") from None
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{":
        raise ValueError(
            f"{path} is a pickle, as torch.save writes it, and reading it could run code: write "
            "it with safetensors.torch.save_file"
        )

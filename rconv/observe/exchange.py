"""Gradients and weights as files: safetensors, which hold numbers and nothing that runs."""

from os import PathLike

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rconv.files import replacing
from rconv.observe.observation import Gradients


def write_tensors(path: str | PathLike, tensors: Gradients) -> None:
    """Write named tensors to a `.safetensors` file, whole or not at all."""
    data = safetensors.torch.save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    )
    with replacing(path) as file:
        file.write(data)


def read_tensors(path: str | PathLike) -> dict[str, Tensor]:
    """Read a `.safetensors` file.

    Raises
    ------
    ValueError : the file is missing, or damaged, or of another kind.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no readable .safetensors file ({error}); write it with "
            "safetensors.torch.save_file, other formats are not accepted"
        ) from None


def load_weights(model: nn.Module, path: str | PathLike) -> None:
    """Load a state dict from a `.safetensors` file into a model, converted to its dtype.

    Raises
    ------
    ValueError : the file cannot be read, or holds the weights of another model.
    """
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} holds the weights of another model: {reason}") from None

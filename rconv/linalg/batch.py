"""Data with one entry per system of a batch: tensors with a leading axis N, and tuples of N."""

import torch
from torch import Tensor


def index(field: Tensor | tuple, where: Tensor | list[int]) -> Tensor | tuple:
    """Some of the entries."""
    if isinstance(field, tuple):
        return tuple(field[i] for i in torch.as_tensor(where).tolist())
    return field[where]


def join(parts: tuple) -> Tensor | tuple:
    """The entries of several batches, one after the other."""
    if isinstance(parts[0], tuple):
        return sum(parts, ())
    return torch.cat(parts)


def put(field: Tensor | tuple, where: Tensor | int, other: Tensor | tuple) -> Tensor | tuple:
    """The entries with those at `where` taken from `other`, in order."""
    if isinstance(field, tuple):
        changed = list(field)
        for i, entry in zip(torch.as_tensor(where).reshape(-1).tolist(), other, strict=True):
            changed[i] = entry
        return tuple(changed)
    changed = field.clone()
    changed[where] = other
    return changed

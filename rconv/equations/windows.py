"""Which output position meets which input pixel: the index that all constraints are made of."""

from functools import lru_cache

import torch
from torch import Tensor

from rconv.model.geometry import Geometry


@lru_cache(maxsize=64)
def window_index(geometry: Geometry) -> Tensor:
    """Which output position multiplies an input pixel with a kernel offset.

    Returns (kh·kw, H·W), int64: entry [t, q] is the output position p in [0, L) whose window has
    pixel q at offset t, or L where there is none.
    """
    (kh, kw), (ho, wo) = geometry.kernel, geometry.output[1:]
    rows = _axis_index(geometry, 0)
    columns = _axis_index(geometry, 1)
    r = rows[:, None, :, None].expand(kh, kw, -1, geometry.input[2])
    c = columns[None, :, None, :].expand(kh, kw, geometry.input[1], -1)
    p = torch.where((r >= 0) & (c >= 0), r * wo + c, ho * wo)
    return p.reshape(geometry.offsets, geometry.pixels)


def _axis_index(geometry: Geometry, axis: int) -> Tensor:
    """Along one axis: (kernel, size) output coordinate of offset and pixel, or -1."""
    offset = torch.arange(geometry.kernel[axis]) * geometry.dilation[axis]
    pixel = torch.arange(geometry.input[1 + axis])
    start = pixel[None] + geometry.padding[axis] - offset[:, None]
    stride = geometry.stride[axis]
    position = start // stride
    valid = (start % stride == 0) & (start >= 0) & (position < geometry.output[1 + axis])
    return torch.where(valid, position, -1)


def tiles(geometry: Geometry) -> bool:
    """Whether the windows lie side by side and cover the input, each pixel once."""
    steps = zip(geometry.output[1:], geometry.kernel, geometry.input[1:], strict=True)
    return (
        geometry.kernel == geometry.stride
        and geometry.padding == (0, 0)
        and all(d == 1 or k == 1 for d, k in zip(geometry.dilation, geometry.kernel, strict=True))
        and all(count * size == whole for count, size, whole in steps)
    )


@lru_cache(maxsize=64)
def residue_classes(geometry: Geometry) -> tuple[tuple[Tensor, Tensor], ...]:
    """Kernel offsets and input pixels that meet each other, and nothing outside their class.

    With stride s a pixel meets only the offsets of its own residue mod s, along each axis: the
    gradient constraints fall apart into independent blocks, one per class. Pairs of indices are
    returned: offsets (m,) of the kh·kw, and pixels (n,) of the H·W. Pixels that no offset meets are
    in none, nor are offsets that no pixel meets. One pair with everything where nothing meets at
    all.
    """
    meets = window_index(geometry) < geometry.positions
    classes: dict[tuple[int, ...], list[int]] = {}
    stride = torch.tensor(geometry.stride)
    dilation = torch.tensor(geometry.dilation)
    for t in meets.any(dim=1).nonzero()[:, 0].tolist():
        offset = torch.tensor(divmod(t, geometry.kernel[1]))
        classes.setdefault(tuple((offset * dilation % stride).tolist()), []).append(t)
    if not classes:
        return ((torch.arange(geometry.offsets), torch.arange(geometry.pixels)),)
    offsets = [torch.tensor(members) for members in classes.values()]
    return tuple((own, meets[own].any(dim=0).nonzero()[:, 0]) for own in offsets)


def window_slices(geometry: Geometry, axis: int) -> list[tuple[slice, slice]]:
    """What each window has inside of the input along one axis, 0 for rows or 1 for columns.

    For each output coordinate the kernel offsets that meet a pixel, and these pixels.
    """
    size, kernel = geometry.input[1 + axis], geometry.kernel[axis]
    step, found = geometry.dilation[axis], []
    for position in range(geometry.output[1 + axis]):
        start = position * geometry.stride[axis] - geometry.padding[axis]
        first = max(0, -(start // step))
        end = max(first, min(kernel, (size - 1 - start) // step + 1))
        pixels = start + first * step, start + end * step
        found.append((slice(first, end), slice(*pixels, step) if first < end else slice(0)))
    return found

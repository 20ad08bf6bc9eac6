"""The two kinds of linear equations that tell a convolution's input.

The unknown is the input X, (C, H, W), flattened in this order. Gradient constraints (R-CONV,
"gradient constraints") hold for every channel c with the SAME matrix A,

    A · X[c] = vec(∂ℓ/∂W[:, c]),      A (D·kh·kw, H·W) made of Ō = ∂ℓ/∂O,

and weight constraints (R-CONV, "weight constraints") with a matrix made of the model alone,

    M · vec(X) = vec(O - b),          M (D·L, C·H·W) made of W.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from rconv.geometry import Geometry


@lru_cache(maxsize=64)
def window_index(geometry: Geometry) -> Tensor:
    """Which output position multiplies an input pixel with a kernel offset.

    Returns
    -------
    (kh·kw, H·W) int64; entry [t, q] is the output position p in [0, L) whose window has pixel
    q at offset t, or L where there is none.
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


@lru_cache(maxsize=64)
def residue_classes(geometry: Geometry) -> tuple[tuple[Tensor, Tensor], ...]:
    """Kernel offsets and input pixels that meet each other, and nothing outside their class.

    With stride s a pixel meets only the offsets of its own residue mod s, along each axis: the
    gradient constraints fall apart into independent blocks, one per class.

    Returns
    -------
    Pairs of int64 indices: offsets (m,) of the kh·kw, and pixels (n,) of the H·W. Pixels that no
    offset meets are in none, nor are offsets that no pixel meets. One pair with everything where
    nothing meets at all.
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
    offsets = [torch.tensor(own) for own in classes.values()]
    return tuple((own, meets[own].any(dim=0).nonzero()[:, 0]) for own in offsets)


def gradient_matrix(
    cotangent: Tensor, geometry: Geometry, block: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Gradient constraints' matrix A, one per image.

    Parameters
    ----------
    cotangent : Ō, (N, D, Ho, Wo), derivative of the loss by the convolution's output.
    geometry : the convolution's shapes.
    block : offsets (m,) and pixels (n,), for these rows and columns only.

    Returns
    -------
    (N, D·kh·kw, H·W), or (N, D·m, n); entry [n, (d, t), q] is Ō[n, d, p] for the position p that
    multiplies pixel q with kernel offset t, else 0.
    """
    n, d = cotangent.shape[:2]
    window = window_index(geometry)
    if block is not None:
        window = window[block[0]][:, block[1]]
    padded = torch.nn.functional.pad(cotangent.reshape(n, d, -1), (0, 1))
    matrix = padded.index_select(2, window.to(cotangent.device).reshape(-1))
    return matrix.reshape(n, d * len(window), window.shape[1])


def gradient_rhs(weight_gradient: Tensor, offsets: Tensor | None = None) -> Tensor:
    """∂ℓ/∂W (N, D, C, kh, kw) as right-hand sides (N, D·kh·kw, C) of `gradient_matrix`.

    With `offsets` (m,), those of its rows only: (N, D·m, C).
    """
    n, d, c = weight_gradient.shape[:3]
    rows = weight_gradient.reshape(n, d, c, -1)
    if offsets is not None:
        rows = rows[..., offsets]
    return rows.transpose(2, 3).reshape(n, -1, c)


def weight_matrix(weight: Tensor, geometry: Geometry) -> sparse.csr_matrix:
    """Weight constraints' matrix M, sparse and the same for every image.

    Parameters
    ----------
    weight : W, (D, C, kh, kw).
    geometry : the convolution's shapes.

    Returns
    -------
    float64 (D·L, C·H·W); entry [(d, p), (c, q)] is W[d, c, t] where the window of position p
    has pixel q at offset t.
    """
    d, c = weight.shape[:2]
    window = window_index(geometry).numpy()
    t, q = np.nonzero(window < geometry.positions)
    p = window[t, q]
    filters, channels = np.arange(d)[:, None, None], np.arange(c)[None, :, None]
    rows = np.broadcast_to(filters * geometry.positions + p, (d, c, t.size))
    columns = np.broadcast_to(channels * geometry.pixels + q, (d, c, t.size))
    values = weight.detach().cpu().double().numpy().reshape(d, c, -1)[:, :, t]
    shape = (geometry.weight_rows, geometry.unknowns)
    return sparse.csr_matrix((values.ravel(), (rows.ravel(), columns.ravel())), shape=shape)


def weight_gram(weight: Tensor, row_weight: Tensor, geometry: Geometry) -> Tensor:
    """Normal matrix of the weighted weight constraints, Mᵀ diag(row_weight²) M, dense.

    Sums over output positions the small product of each window with itself, so that the cost
    is that of the windows and not of the matrix.

    Parameters
    ----------
    weight : W, (D, C, kh, kw).
    row_weight : (D, L), weight of each equation.
    geometry : the convolution's shapes.

    Returns
    -------
    (C·H·W, C·H·W), symmetric.
    """
    d, c = weight.shape[:2]
    pixel = _window_pixels(geometry).to(weight.device)
    channel = torch.arange(c, device=weight.device)[None, :, None] * geometry.pixels
    unknown = (channel + pixel.clamp(min=0)[:, None, :]).flatten(1)
    inside = (pixel >= 0)[:, None, :].expand(-1, c, -1).flatten(1)
    kernel = weight.reshape(1, d, -1) * row_weight.T[:, :, None]
    kernel = kernel * inside[:, None, :]
    product = kernel.mT @ kernel
    gram = weight.new_zeros(geometry.unknowns**2)
    flat = unknown[:, :, None] * geometry.unknowns + unknown[:, None, :]
    gram.index_add_(0, flat.reshape(-1), product.reshape(-1))
    return gram.reshape(geometry.unknowns, geometry.unknowns)


@lru_cache(maxsize=64)
def _window_pixels(geometry: Geometry) -> Tensor:
    """(L, kh·kw): the pixel that window p has at offset t, or -1 in the padding."""
    window = window_index(geometry)
    pixels = torch.full((geometry.offsets, geometry.positions + 1), -1)
    columns = torch.arange(geometry.pixels).expand_as(window)
    pixels.scatter_(1, window, columns)
    return pixels[:, :-1].T.contiguous()

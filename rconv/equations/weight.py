"""Weight constraints: linear in a convolution's input, made of the model alone.

The unknown is the input X, (C, H, W), flattened in this order. Where the output O is known
(R-CONV, "weight constraints"),

    M · vec(X) = vec(O - b),          M (D·L, C·H·W) made of W.
"""

import numpy as np
from scipy import sparse
from torch import Tensor

from rconv.equations.windows import window_index, window_slices
from rconv.model.geometry import Geometry


def weight_matrix(weight: Tensor, geometry: Geometry) -> sparse.csr_matrix:
    """Weight constraints' matrix M, sparse and the same for every image.

    Parameters
    ----------
    weight : Tensor
        W, (D, C, kh, kw).
    geometry : Geometry
        The convolution's shapes.

    Returns
    -------
    sparse.csr_matrix
        Float64 (D·L, C·H·W); entry [(d, p), (c, q)] is W[d, c, t] where the window of
        position p has pixel q at offset t.
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
    weight : Tensor
        W, (D, C, kh, kw).
    row_weight : Tensor
        (D, L), weight of each equation.
    geometry : Geometry
        The convolution's shapes.

    Returns
    -------
    Tensor
        (C·H·W, C·H·W), symmetric.
    """
    (d, c), (h, w) = weight.shape[:2], geometry.input[1:]
    kernel = weight.reshape(1, d, -1) * row_weight.T[:, :, None]
    products = (kernel.mT @ kernel).reshape(*geometry.output[1:], *[c, *geometry.kernel] * 2)
    gram = weight.new_zeros(c, h, w, c, h, w)
    for i, (t, y) in enumerate(window_slices(geometry, 0)):
        for j, (u, x) in enumerate(window_slices(geometry, 1)):
            gram[:, y, x, :, y, x] += products[i, j, :, t, u, :, t, u]
    return gram.reshape(geometry.unknowns, geometry.unknowns)

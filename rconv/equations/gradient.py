"""Gradient constraints: linear in a convolution's input, made of the cotangent of its output.

The unknown is the input X, (C, H, W), flattened in this order. They hold for every channel c with
the SAME matrix A (R-CONV, "gradient constraints"),

    A · X[c] = vec(∂ℓ/∂W[:, c]),      A (D·kh·kw, H·W) made of Ō = ∂ℓ/∂O.
"""

import torch
from torch import Tensor

from rconv.equations.windows import window_index
from rconv.model.geometry import Geometry


def gradient_matrix(
    cotangent: Tensor, geometry: Geometry, block: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Gradient constraints' matrix A, one per image.

    Parameters
    ----------
    cotangent : Tensor
        Ō, (N, D, Ho, Wo), derivative of the loss by the convolution's output.
    geometry : Geometry
        The convolution's shapes.
    block : tuple[Tensor, Tensor] | None
        Offsets (m,) and pixels (n,), for these rows and columns only.

    Returns
    -------
    Tensor
        (N, D·kh·kw, H·W), or (N, D·m, n); entry [n, (d, t), q] is Ō[n, d, p] for the
        position p that multiplies pixel q with kernel offset t, else 0.
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

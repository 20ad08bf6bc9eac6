"""Generic rank of the gradient constraints of one convolution, from its shapes alone."""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.equations.conv_gradient import gradient_matrix
from rconv.equations.windows import window_index
from rconv.model.geometry import Geometry

EPS = torch.finfo(torch.float64).eps


def gradient_rank(geometry: Geometry, generator: torch.Generator | None = None) -> int:
    """Generic rank of the gradient constraints of one input channel, at most H·W.

    The rank for a Gaussian random Ō, which is the largest that any Ō can have.
    """
    cotangent = torch.randn(1, *geometry.output, generator=generator, dtype=torch.float64)
    return matrix_rank(gradient_matrix(cotangent, geometry)[0])


def class_bound(geometry: Geometry) -> int:
    """Upper bound of `gradient_rank` that counts per residue class instead of over all.

    With stride s a pixel meets only the kernel offsets of its own residue class mod s, so each
    class has equations of its own: Σ min(pixels in the class, D · offsets in the class).
    """
    per_axis = []
    for axis in (0, 1):
        stride = geometry.stride[axis]
        pixels = (torch.arange(geometry.input[1 + axis]) + geometry.padding[axis]) % stride
        offsets = torch.arange(geometry.kernel[axis]) * geometry.dilation[axis] % stride
        counts = (own.bincount(minlength=stride).tolist() for own in (pixels, offsets))
        per_axis.append(list(zip(*counts, strict=True)))
    filters = geometry.output[0]
    return sum(
        min(rows * columns, filters * above * across)
        for rows, above in per_axis[0]
        for columns, across in per_axis[1]
    )


def filters_needed(geometry: Geometry) -> int:
    """Fewest filters with which gradient constraints alone tell a layer's input, generically.

    Parameters
    ----------
    geometry : Geometry
        The convolution's shapes; its own number of filters does not matter.

    Raises
    ------
    ValueError
        No number of filters suffices, because no window covers some pixel.
    """
    if bool((window_index(geometry) == geometry.positions).all(dim=0).any()):
        raise ValueError("some pixel lies under no window: no number of filters tells it")
    filters = 1
    while True:
        wider = replace(geometry, output=(filters, *geometry.output[1:]))
        if class_bound(wider) == geometry.pixels and gradient_rank(wider) == geometry.pixels:
            return filters
        filters += 1


def matrix_rank(matrix: Tensor) -> int:
    """Numerical rank of a matrix (m, n), by the eigenvalues of its smaller Gram matrix."""
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram)
    return int((values > values[-1] * EPS * len(values)).sum())

"""The published procedure, written anew: one equation after the other, and the first that suffice.

From the paper (Eltaras et al., "R-CONV", WISE 2024) and the notebooks of its repository,
https://github.com/tamertaras91/RR-CONV. It differs from `rconv.attack` in which equations it
takes: a layer is solved from the first rows that raise the rank, as a square system,
and the others are discarded; the first layer from as many weight constraints as it has unknowns;
the head from one row, the last class whose bias gradient is not zero.
"""

import time
from collections import Counter
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from rconv.model.geometry import Geometry, Stage
from rconv.model.read import Network

ZERO = 5e-8
"""Size up to which an output counts as zero: the published code rounds it to seven decimals."""

INDEPENDENT = 1e-12
"""Part of a row, relative to the row, that must be new for it to raise the rank: what rounding
leaves of a sum of 1024 products in double precision, with a margin of about four."""

Layer = Callable[[Stage, np.ndarray, np.ndarray], np.ndarray]
"""Stage, Ō (filter D, row, column) and weight gradient (D, C, row, column) → input (C, H·W)."""


def gradient_row(cotangent: np.ndarray, g: Geometry, offset: tuple[int, int]) -> np.ndarray:
    """One equation: which pixels, (H·W,), the filter's Ō (Ho, Wo) multiplies at this offset."""
    (height, width), (pad, _), (stride, _) = g.input[1:], g.padding, g.stride
    row = np.zeros((height + 2 * pad, width + 2 * pad))
    (i, j), (ho, wo) = offset, cotangent.shape
    row[i : i + stride * ho : stride, j : j + stride * wo : stride] = cotangent
    return row[pad : pad + height, pad : pad + width].ravel()


def weight_row(weight: np.ndarray, g: Geometry, position: tuple[int, int]) -> np.ndarray:
    """One equation: what each pixel, (C·H·W,), counts for in a filter's output there."""
    (channels, height, width), pad, stride = g.input, g.padding[0], g.stride[0]
    row = np.zeros((channels, height + 2 * pad, width + 2 * pad))
    r, c = stride * position[0], stride * position[1]
    row[:, r : r + g.kernel[0], c : c + g.kernel[1]] = weight
    return row[:, pad : pad + height, pad : pad + width].ravel()


def gradient_layer(stage: Stage, cotangent: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """A layer's input, from the first rows that each raise the rank.

    Whether a row does is seen from what is left of it beside the earlier ones (Gram and Schmidt,
    twice). The published code takes the rank of all of them anew, by SVD, which is slower and
    chooses the same rows. Raises LinAlgError where the rows do not reach full rank, as in the
    published code.
    """
    g = stage.geometry
    basis = np.zeros((g.pixels, g.pixels))
    rows: list[np.ndarray] = []
    known: list[np.ndarray] = []
    for d, i, j in np.ndindex(g.output[0], *g.kernel):
        row = gradient_row(cotangent[d], g, (i, j))
        new = row / (np.linalg.norm(row) or 1.0)
        for _ in range(2):
            earlier = basis[: len(rows)]
            new = new - earlier.T @ (earlier @ new)
        if np.linalg.norm(new) > INDEPENDENT:
            basis[len(rows)] = new / np.linalg.norm(new)
            rows.append(row)
            known.append(gradient[d, :, i, j])
        if len(rows) == g.pixels:
            break
    return np.linalg.solve(np.array(rows), np.array(known)).T


def first_layer(stage: Stage, output: np.ndarray) -> np.ndarray:
    """The image, (C·H·W,), from as many weight constraints as there are unknowns."""
    g = stage.geometry
    weight, bias = stage.weight.numpy(), stage.bias.numpy()
    rows, known = [], []
    for d, r, c in islice(np.ndindex(*g.output), g.unknowns):
        rows.append(weight_row(weight[d], g, (r, c)))
        known.append(output[d, r, c] - bias[d])
    return np.linalg.solve(np.array(rows), np.array(known))


def attack_one(
    network: Network,
    gradients: dict[str, Tensor],
    *,
    layer: Layer = gradient_layer,
    spent: Counter[str] | None = None,
) -> Tensor:
    """The published procedure on the gradients of one image.

    The network has square convolutions with biases, then one fully connected layer with a bias.
    Where the first activation has no inverse, the first layer takes gradient constraints too, as in
    the published notebook with ReLU everywhere. `layer` solves a layer from gradient constraints;
    the CPU seconds of each layer are added to `spent`.
    """
    head = network.head
    bias = gradients[f"{head.name}.bias"]
    row = int(bias.nonzero()[-1])
    output = gradients[f"{head.name}.weight"][row] / bias[row]
    cotangent = bias @ head.weight
    for stage in reversed(network.stages):
        start = time.process_time()
        output = output.reshape(stage.geometry.output)
        output = torch.where(output.abs() < ZERO, 0.0, output)
        below = cotangent.reshape(stage.geometry.output) * stage.activation.derivative(output)
        if stage is network.stages[0] and stage.activation.invertible:
            found = first_layer(stage, stage.activation.inverse(output).numpy())
        else:
            found = layer(stage, below.numpy(), gradients[f"{stage.name}.weight"].numpy())
        output = torch.from_numpy(found)
        cotangent = stage.transpose(below[None])[0]
        if spent is not None:
            spent[stage.name] += time.process_time() - start
    return output.reshape(network.input_shape)

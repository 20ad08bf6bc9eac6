"""Our R-CONV against a plain row-by-row implementation of the published procedure.

    RCONV_DATA=… python benchmarks/row_by_row.py [--images 100] [--slow 2]

The published procedure, written anew from its description: the equations of a layer are written
one row at a time, the rank of what has been collected is taken by SVD after each appended row, and
the square system of the rows that raised it is solved densely; the first layer is one dense solve
of as many weight constraints as there are unknowns. Both run in this process, on the same images
and with the same threads.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.records import table
from rconv.model.geometry import Geometry, Stage
from rconv.model.read import Network, read

SPENT: Counter[str] = Counter()
"""Seconds of the row-by-row procedure, by layer."""


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
    """The layer's input (C, H·W), from the first rows that each raise the rank."""
    g = stage.geometry
    rows: list[np.ndarray] = []
    known: list[np.ndarray] = []
    for d, i, j in np.ndindex(g.output[0], *g.kernel):
        rows.append(gradient_row(cotangent[d], g, (i, j)))
        if np.linalg.matrix_rank(np.array(rows)) < len(rows):
            rows.pop()
            continue
        known.append(gradient[d, :, i, j])
        if len(rows) == g.pixels:
            break
    return np.linalg.solve(np.array(rows), np.array(known)).T


def first_layer(stage: Stage, output: np.ndarray) -> np.ndarray:
    """The image, from as many weight constraints as there are unknowns."""
    g = stage.geometry
    weight, bias = stage.weight.numpy(), stage.bias.numpy()
    rows, known = [], []
    for d, r, c in islice(np.ndindex(*g.output), g.unknowns):
        rows.append(weight_row(weight[d], g, (r, c)))
        known.append(output[d, r, c] - bias[d])
    return np.linalg.solve(np.array(rows), np.array(known))


def attack_one(network: Network, gradients: dict[str, Tensor]) -> Tensor:
    """The published procedure on the gradients of one image: (C, H, W)."""
    head = network.head
    bias = gradients[f"{head.name}.bias"]
    row = int(bias.nonzero()[-1])
    output = gradients[f"{head.name}.weight"][row] / bias[row]
    cotangent = bias @ head.weight
    for stage in reversed(network.stages):
        start = time.perf_counter()
        output = output.reshape(stage.geometry.output)
        output = torch.where(output.abs() < 1e-9, 0.0, output)
        cotangent = cotangent.reshape(stage.geometry.output)
        below = cotangent * stage.activation.derivative(output)
        if stage is network.stages[0]:
            found = first_layer(stage, stage.activation.inverse(output).numpy())
        else:
            gradient = gradients[f"{stage.name}.weight"].numpy()
            found = gradient_layer(stage, below.numpy(), gradient)
        output = torch.from_numpy(found)
        cotangent = stage.transpose(below[None])[0]
        SPENT[stage.name] += time.perf_counter() - start
    return output.reshape(network.input_shape)


def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it returns, and its seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--slow", type=int, default=3, help="images for the row-by-row procedure")
    arguments = parser.parse_args()
    truth = datasets.load("CIFAR10", range(arguments.images))
    model = shared_model("CIFAR10", "lenet_main", "ReLU")
    shape = tuple(truth.images.shape[1:])
    gradients = client_gradients(model, "lenet_main", truth)

    start = time.perf_counter()
    attack = Attack(model, shape, constraints="paper")
    prepared = time.perf_counter() - start
    found, seconds = zip(*(timed(lambda: attack(gradients).images) for _ in range(3)), strict=True)
    ours = min(seconds) / arguments.images
    network = read(model, shape)
    each = [{name: g[i] for name, g in gradients.items()} for i in range(arguments.slow)]
    slow, seconds = zip(*(timed(partial(attack_one, network, g)) for g in each), strict=True)
    theirs = min(seconds)

    def error(images: Tensor) -> str:
        difference = images - truth.images[: len(images)]
        return f"{float(difference.square().flatten(1).mean(dim=1).median()):.0e}"

    rows = [
        ("row by row", arguments.slow, f"{1e3 * theirs:.1f}", error(torch.stack(slow)), "1"),
        ("rconv", arguments.images, f"{1e3 * ours:.2f}", error(found[0]), f"{theirs / ours:.0f}"),
    ]
    print(table(("lenet_main, ReLU", "images", "ms / image", "MSE median", "times faster"), rows))
    layers = ", ".join(f"{name} {s / arguments.slow:.2f} s" for name, s in SPENT.items())
    print(f"row by row: {layers}; {torch.get_num_threads()} threads")
    print("each the best of its runs: three over all images, and one per image")
    print(f"rconv: certificate included; prepared once, in {1e3 * prepared:.0f} ms")


if __name__ == "__main__":
    main()

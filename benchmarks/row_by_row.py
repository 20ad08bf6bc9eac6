"""Our R-CONV against a plain row-by-row implementation of the published procedure.

    RCONV_DATA=… python benchmarks/row_by_row.py [--images 100] [--slow 2] [--short]

The published procedure, `rconv.lab.row_by_row`, as it was published: the equations of a layer are
written one row at a time, the rank of what has been collected is taken by SVD after each appended
row, and the square system of the rows that raised it is solved densely; the first layer is one
dense solve of as many weight constraints as there are unknowns. Both run in this process, on the
same images and with the same threads; times are those of the processor, summed over threads.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from _shared import dataset, keep, named, parser
from torch import Tensor

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.records import table
from rconv.lab.row_by_row import attack_one, gradient_row
from rconv.model.geometry import Stage
from rconv.model.read import read

SPENT: Counter[str] = Counter()
"""Seconds of the row-by-row procedure, by layer."""


def gradient_layer(stage: Stage, cotangent: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The layer's input (C, H·W), from the first rows that each raise the rank, by SVD."""
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


def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it returns, and its seconds."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--slow", type=int, default=3, help="images for the row-by-row procedure")
    arguments = options.parse_args()
    if arguments.short:
        arguments.images, arguments.slow = 2, 1
    name = dataset("CIFAR10", arguments.images)
    truth = datasets.load(name, range(arguments.images))
    model = shared_model(name, "lenet_main", "ReLU")
    shape = tuple(truth.images.shape[1:])
    gradients = client_gradients(model, "lenet_main", truth)

    start = time.process_time()
    attack = Attack(model, shape, constraints="paper")
    prepared = time.process_time() - start
    found, seconds = zip(*(timed(lambda: attack(gradients).images) for _ in range(3)), strict=True)
    ours = min(seconds) / arguments.images
    network = read(model, shape)
    slow_attack = partial(attack_one, layer=gradient_layer, spent=SPENT)
    each = [{name: g[i] for name, g in gradients.items()} for i in range(arguments.slow)]
    slow, seconds = zip(*(timed(partial(slow_attack, network, g)) for g in each), strict=True)
    theirs = min(seconds)

    def error(images: Tensor) -> str:
        difference = images - truth.images[: len(images)]
        return f"{float(difference.square().flatten(1).mean(dim=1).median()):.0e}"

    rows = [
        ("row by row", arguments.slow, f"{1e3 * theirs:.1f}", error(torch.stack(slow)), "1"),
        ("rconv", arguments.images, f"{1e3 * ours:.2f}", error(found[0]), f"{theirs / ours:.0f}"),
    ]
    header = ("lenet_main, ReLU", "images", "ms / image", "MSE median", "times faster")
    print(table(header, rows))
    keep(arguments, named(header, rows))
    layers = ", ".join(f"{name} {s / arguments.slow:.2f} s" for name, s in SPENT.items())
    print(f"row by row: {layers}; {torch.get_num_threads()} threads")
    print("each the best of its runs: three over all images, and one per image")
    print(f"rconv: certificate included; prepared once, in {1e3 * prepared:.0f} ms")


if __name__ == "__main__":
    main()

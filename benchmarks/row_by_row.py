"""Our R-CONV against a plain row-by-row implementation of the published procedure.

    RCONV_DATA=… python benchmarks/row_by_row.py [--images 100] [--slow 2]

The published procedure, written anew from its description: a layer's gradient constraints are
appended one row at a time, the rank of what has been collected is taken by SVD after each, and
the square system of the rows that raised it is solved densely; the first layer is one dense solve
of as many weight constraints as there are unknowns. Both run in this process, on the same images
and with the same threads.
"""

import argparse
import time

import torch
from torch import Tensor

from rconv import datasets
from rconv.attack import Attack
from rconv.constraints import gradient_matrix, gradient_rhs, weight_matrix
from rconv.experiment import client_gradients, shared_model
from rconv.network import Network, read
from rconv.records import table


def independent_rows(matrix: Tensor) -> list[int]:
    """Rows that each raise the rank, found by one SVD per appended row."""
    chosen: list[int] = []
    for row in range(len(matrix)):
        collected = matrix[[*chosen, row]]
        if int(torch.linalg.matrix_rank(collected)) == len(chosen) + 1:
            chosen.append(row)
        if len(chosen) == matrix.shape[1]:
            break
    return chosen


def attack_one(network: Network, gradients: dict[str, Tensor]) -> Tensor:
    """The published procedure on the gradients of one image: (C, H, W)."""
    head = network.head
    bias = gradients[f"{head.name}.bias"]
    row = int(bias.nonzero()[-1])
    output = gradients[f"{head.name}.weight"][row] / bias[row]
    cotangent = bias @ head.weight
    for stage in reversed(network.stages):
        output = output.reshape(stage.geometry.output)
        output = torch.where(output.abs() < 1e-9, 0.0, output)
        cotangent = cotangent.reshape(stage.geometry.output)
        below = cotangent * stage.activation.derivative(output)
        if stage is network.stages[0]:
            dense = torch.from_numpy(weight_matrix(stage.weight, stage.geometry).toarray())
            known = stage.activation.inverse(output) - stage.bias[:, None, None]
            unknowns = stage.geometry.unknowns
            output = torch.linalg.solve(dense[:unknowns], known.flatten()[:unknowns])
        else:
            matrix = gradient_matrix(below[None], stage.geometry)[0]
            rhs = gradient_rhs(gradients[f"{stage.name}.weight"][None])[0]
            rows = independent_rows(matrix)
            output = torch.linalg.solve(matrix[rows], rhs[rows]).T
        cotangent = stage.transpose(below[None])[0]
    return output.reshape(network.input_shape)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--slow", type=int, default=2, help="images for the row-by-row procedure")
    arguments = parser.parse_args()
    truth = datasets.load("CIFAR10", range(arguments.images))
    model = shared_model("CIFAR10", "lenet", "ReLU")
    shape = tuple(truth.images.shape[1:])
    gradients = client_gradients(model, "lenet", truth)

    start = time.perf_counter()
    found = Attack(model, shape, constraints="paper")(gradients).images
    ours = (time.perf_counter() - start) / arguments.images
    network = read(model, shape)
    start = time.perf_counter()
    slow = [
        attack_one(network, {name: g[i] for name, g in gradients.items()})
        for i in range(arguments.slow)
    ]
    theirs = (time.perf_counter() - start) / arguments.slow

    def error(images: Tensor) -> str:
        difference = images - truth.images[: len(images)]
        return f"{float(difference.square().flatten(1).mean(dim=1).median()):.0e}"

    rows = [
        ("row by row", arguments.slow, f"{1e3 * theirs:.1f}", error(torch.stack(slow)), "1"),
        ("rconv", arguments.images, f"{1e3 * ours:.2f}", error(found), f"{theirs / ours:.0f}"),
    ]
    print(table(("lenet, ReLU", "images", "ms / image", "MSE median", "times faster"), rows))
    print("rconv: preparation and certificate included")


if __name__ == "__main__":
    main()

"""Networks as people train them: pooling, norms by the data, BatchNorm in training mode.

    RCONV_DATA=… python benchmarks/modern.py [--images 10] [--only NAME …] [--short]

Image i is training image 100 + i, its label i modulo 10, and i is the seed of the weights, which
are PyTorch's; the settings of the attack were chosen on others. `exact` counts images at 100 dB,
80 dB in float32. Clients in training mode return their buffers. Time is the processor's. `--short`
is the smallest network alone.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _shared import dataset, keep, parser
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab.metrics import psnr

EXACT = {"float64": 100.0, "float32": 80.0}
SKIPPED = 100


def lenet(channels: int, first: int, second: int, pad: int, side: int) -> nn.Sequential:
    """LeNet-5 with Tanh and average pooling."""
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, padding=pad), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(first, second, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(second * side**2, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(),
        nn.Linear(84, 10),
    )  # fmt: skip


def fedavg(channels: int, side: int) -> nn.Sequential:
    """The CNN of McMahan et al. 2017."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64 * side**2, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def grouped() -> nn.Sequential:
    """GroupNorm and SiLU."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2), nn.GroupNorm(8, 32), nn.SiLU(),
        nn.Conv2d(32, 48, 3, 1, 1), nn.GroupNorm(8, 48), nn.SiLU(), nn.Flatten(),
        nn.Linear(48 * 256, 10),
    )  # fmt: skip


def separable() -> nn.Sequential:
    """Depthwise convolutions, each below one of 1 × 1."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Conv2d(32, 64, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.Conv2d(64, 64, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 256, 10),
    )  # fmt: skip


def chain(pooled: bool) -> nn.Sequential:
    """Convolutions with BatchNorm in training mode and ReLU: four, or two and max pooling."""
    kernels = [(5, 1), (5, 1)] if pooled else [(5, 2), (3, 1), (5, 2), (3, 1)]
    layers, channels, side = [], 3, 16 if pooled else 32
    for kernel, stride in kernels:
        width = 48 if pooled else 32
        layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()] + [nn.MaxPool2d(2)] * pooled
        channels, side = width, side // 2 if pooled else side // stride
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 10))


@dataclass(frozen=True)
class Cell:
    """One row of the table: `images` at most, of `side` pixels."""

    name: str
    make: Callable[[], nn.Module]
    data: str = "CIFAR100"
    side: int = 32
    dtype: str = "float64"
    images: int = 10


CELLS = (
    Cell("LeNet-5, 6 and 16 filters", lambda: lenet(1, 6, 16, 2, 5), "MNIST", 28),
    Cell("LeNet-5, 24 and 48 filters", lambda: lenet(3, 24, 48, 0, 5)),
    Cell("GroupNorm and SiLU", grouped),
    Cell("depthwise-separable", separable),
    Cell("FedAvg's CNN, MNIST", lambda: fedavg(1, 7), "MNIST", 28, images=5),
    Cell("FedAvg's CNN, CIFAR", lambda: fedavg(3, 8), images=5),
    Cell("BatchNorm in training mode and max pooling", lambda: chain(True), side=16),
    Cell("four BatchNorms in training mode", lambda: chain(False), images=5),
    Cell("the same in float32", lambda: chain(False), dtype="float32", images=5),
)


def image(cell: Cell, i: int) -> Tensor:
    """(1, C, H, W), in float64."""
    name = dataset(cell.data, SKIPPED + cell.images)
    index = SKIPPED + i if name == cell.data else i % datasets.SIZES[name]
    found = datasets.load(name, [index]).images.double()
    return nn.functional.interpolate(found, size=(cell.side, cell.side), mode="area")


def attacked(cell: Cell, i: int) -> dict:
    """One image through one network."""
    torch.manual_seed(i)
    model, truth = cell.make().to(getattr(torch, cell.dtype)).train(), image(cell, i)
    client = copy.deepcopy(model)
    own = next(model.parameters())
    loss = nn.functional.cross_entropy(client(truth.to(own)), torch.tensor([i % 10]))
    gradients = torch.autograd.grad(loss, list(client.parameters()))
    names = [name for name, _ in client.named_parameters()]
    begun = time.process_time()
    attack = Attack(model, tuple(truth.shape[1:]))
    sent = dict(zip(names, gradients, strict=True))
    result = attack(sent, buffers=dict(client.named_buffers()) or None)
    seconds = time.process_time() - begun
    reached = float(psnr(result.images.clamp(0, 1), truth, data_range=1.0)[0])
    return {
        "image": i,
        "psnr": round(reached, 1),
        "unique": bool(result.unique),
        "wrong": bool(result.unique) and reached < 40,
        "seconds": round(seconds, 1),
    }


def summary(cell: Cell, rows: list[dict]) -> dict:
    """A point of the record."""
    reached = sorted(row["psnr"] for row in rows)
    return {
        "network": cell.name,
        "dtype": cell.dtype,
        "images": len(rows),
        "exact": sum(value >= EXACT[cell.dtype] for value in reached),
        "unique": sum(row["unique"] for row in rows),
        "wrong": sum(row["wrong"] for row in rows),
        "worst": reached[0],
        "median": reached[len(reached) // 2],
        "seconds": max(row["seconds"] for row in rows),
        "each": rows,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=10, help="at most, of each network")
    options.add_argument("--only", nargs="+", metavar="NAME", help="parts of networks' names")
    given, points = options.parse_args(), []
    for cell in CELLS:
        if given.only and not any(part in cell.name for part in given.only):
            continue
        if given.short and cell.side > 16:
            continue
        rows = []
        for i in range(1 if given.short else min(given.images, cell.images)):
            rows.append(attacked(cell, i))
            print(rows[-1], flush=True)
        point = summary(cell, rows)
        points.append(point)
        print({key: value for key, value in point.items() if key != "each"}, flush=True)
        keep(given, points)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""One image of any side: time, memory and quality of the attack, against the side.

    python benchmarks/large.py [--sides 32 64 128 224] [--write FILE] [--short]

Four convolutions 5×5 of the strides 2, 2, 1, 1 with PyTorch's initialisation, seed 0, float64, and
a photograph that comes with scikit-image, scaled to the side. Every point runs in a process of its
own, so that its peak of memory is its own; time is that of the processor, summed over its threads.
"""

import json
import resource
import subprocess
import sys
import time

import torch
from _shared import keep, parser
from skimage import data
from torch import nn

from rconv.attack.attack import Attack
from rconv.lab.metrics import psnr
from rconv.lab.records import table

NETWORKS = {"LeakyReLU": (16, 80, 160, 160), "ReLU": (48, 320, 160, 160)}
"""Filters. Weight constraints of LeakyReLU need 12 and 64 in the first two layers, and more for a
condition that costs few iterations; of ReLU only active outputs count. In the last two layers 160
filters of gradient constraints determine a map of 56×56, for a side of 224."""

SIDES = (32, 64, 128, 224)


def network(
    activation: str, filters: tuple[int, ...], side: int, classes: int = 10, seed: int = 0
) -> nn.Sequential:
    """Four convolutions, for images of a side that four divides."""
    torch.manual_seed(seed)
    layers, width = [], 3
    for own, stride in zip(filters, (2, 2, 1, 1), strict=True):
        layers += [nn.Conv2d(width, own, 5, stride, 2)]
        layers += [nn.LeakyReLU(0.2) if activation == "LeakyReLU" else nn.ReLU()]
        width = own
    head = nn.Linear(width * (side // 4) ** 2, classes)
    return nn.Sequential(*layers, nn.Flatten(), head).double()


def photograph(side: int) -> torch.Tensor:
    """(1, 3, side, side), in [0, 1]."""
    pixels = torch.from_numpy(data.astronaut()[:448, 30:478]).permute(2, 0, 1)[None].double()
    return nn.functional.interpolate(pixels / 255, (side, side), mode="area")


def measure(activation: str, side: int) -> dict:
    """One point of the curve."""
    model, truth = network(activation, NETWORKS[activation], side), photograph(side)
    loss = nn.functional.cross_entropy(model(truth), torch.tensor([3]))
    sent = [g.detach() for g in torch.autograd.grad(loss, list(model.parameters()))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = Attack(model, (3, side, side))(sent)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "activation": activation,
        "filters": list(NETWORKS[activation]),
        "side": side,
        "seconds": round(seconds, 1),
        "peak_gib": round(peak / 2**20, 2),
        "client_gib": round(before / 2**20, 2),
        "psnr": round(float(psnr(found.images, truth, data_range=1.0)), 1),
        "unique": bool(found.unique),
    }


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--sides", type=int, nargs="+", default=SIDES)
    own.add_argument("--one", nargs=2, metavar=("ACTIVATION", "SIDE"), help="a single point")
    options = own.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    points = []
    for activation in NETWORKS:
        for side in (16,) if options.short else options.sides:
            command = [sys.executable, __file__, "--one", activation, str(side)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            points.append(json.loads(run.stdout))
            print(run.stdout, end="", flush=True)
    print(table(tuple(points[0]), [tuple(map(str, point.values())) for point in points]))
    keep(options, points)


if __name__ == "__main__":
    main()

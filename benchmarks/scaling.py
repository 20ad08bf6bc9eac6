"""How the cost of the attack grows with image side, filters and number of images.

    python benchmarks/scaling.py [--short]

A two-layer network (5×5, stride 2, LeakyReLU) with the paper's constraints, on random images:
the cost depends on the shapes alone. Times are those of the processor, summed over threads.
"""

import time

import torch
from _shared import keep, named, parser
from torch import nn

from rconv.attack.attack import Attack
from rconv.lab.records import table
from rconv.observe.observation import per_sample_gradients


def network(side: int, filters: int) -> nn.Sequential:
    """Convolutions of 12 and `filters` filters, for RGB images."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 12, 5, 2, 2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(12, filters, 5, 2, 2),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(filters * (side // 4) ** 2, 10),
    ]
    return nn.Sequential(*layers).double()


def measure(side: int, filters: int, images: int) -> tuple:
    """One row of the table."""
    model = network(side, filters)
    truth = torch.rand(images, 3, side, side, dtype=torch.float64)
    gradients = per_sample_gradients(model, truth, torch.zeros(images, dtype=torch.int64))
    start = time.process_time()
    attack = Attack(model, (3, side, side), constraints="paper")
    prepared = time.process_time()
    error = (attack(gradients).images - truth).square().mean()
    done = time.process_time()
    each = 1e3 * (done - prepared) / images
    return side, filters, images, f"{prepared - start:.2f}", f"{each:.1f}", f"{float(error):.0e}"


HEADER = ("side", "filters", "images", "prepare s", "ms / image", "MSE")


def main() -> None:
    arguments = parser(__doc__).parse_args()
    # Gradient constraints of stride 2 need a quarter of the pixels per kernel offset class.
    sides = [(side, max(16, side * side // 64), 4) for side in (16, 24, 32, 48, 64)]
    filters = [(32, f, 10) for f in (16, 32, 64, 128)]
    images = [(32, 16, n) for n in (1, 10, 100, 200)]
    measure(16, 16, 1)
    settings = sides[:2] if arguments.short else (*sides, *filters, *images)
    rows = [measure(*setting) for setting in settings]
    print(table(HEADER, rows))
    keep(arguments, named(HEADER, rows))


if __name__ == "__main__":
    main()
